"""Item ids on the command line: Yelp has ids such as -abc and --9e1ONY, which argparse would take for options."""

import argparse
import difflib
from collections.abc import Mapping


def separate(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments of a verb that takes ids, reordered: options first, everything else after `--`.

    An option's value may look like anything except another option. Anything else with a dash is an
    id, unless it looks like a misspelt or abbreviated option: that is a usage error, as in argparse, and such an
    id can be given after `--`.
    """
    known = parser._option_string_actions
    options: list[str] = []
    ids: list[str] = []
    rest = list(reversed(arguments))
    while rest:
        token = rest.pop()
        if token == "--":
            ids += reversed(rest)
            break
        if token in known:
            if known[token].nargs == 0 or not rest or rest[-1] in known or rest[-1] == "--":
                options.append(token)  # a flag, or argparse reports the missing value
            else:
                options.append(f"{token}={rest.pop()}" if token.startswith("--") else f"{token}{rest.pop()}")
        elif ("=" in token and token.partition("=")[0] in known) or _attached(token, known):
            options.append(token)
        elif near := _near(token, known):
            parser.error(f"unrecognized argument: {token} (did you mean {near}? Put item ids after --)")
        else:
            ids.append(token)
    return [*options, "--", *ids] if ids else options


def _attached(token: str, known: Mapping[str, argparse.Action]) -> bool:
    """-k5"""
    return token[:2] in known and known[token[:2]].nargs != 0 and not token.startswith("--") and token[2:].isdigit()


def _near(token: str, known: Mapping[str, argparse.Action]) -> str | None:
    name = token.partition("=")[0]
    if not name.startswith("--") or len(name) < 4:
        return None
    longer = [option for option in known if option.startswith(name)]
    return next(iter(longer or difflib.get_close_matches(name, known, 1, 0.8)), None)
