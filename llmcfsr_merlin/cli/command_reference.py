"""The commands as a page of the documentation, from their parsers."""

import argparse
from collections.abc import Iterator

from llmcfsr_merlin.cli.main import VERBS
from llmcfsr_merlin.cli.verb import Verb
from llmcfsr_merlin.config.settings_reference import cell


def command_reference() -> str:
    """Markdown: every verb with its arguments."""
    parts = [
        "# Commands\n",
        "Every verb also takes `-q` (only warnings, errors and the result), `-v` (times, modules and libraries' "
        "warnings) and `--traceback`. Exit codes: 0 done, 1 bad input, 2 wrong usage, 3 a bug, 130 interrupted.\n",
        "| command | what it does |\n|---|---|",
        *(f"| [`llmcfsr {verb.name}`](#llmcfsr-{verb.name.replace(' ', '-')}) | {cell(verb.help)} |" for verb in VERBS),
        "",
    ]
    for verb in VERBS:
        parts += _chapter(verb)
    return "\n".join(parts) + "\n"


def _chapter(verb: Verb) -> Iterator[str]:
    parser = argparse.ArgumentParser(prog=f"llmcfsr {verb.name}", add_help=False)
    verb.arguments(parser)
    yield f"## llmcfsr {verb.name}\n"
    yield f"{cell(verb.help[0].upper() + verb.help[1:])}.\n"
    yield f"    {' '.join(parser.format_usage().removeprefix('usage: ').split())}\n"
    if parser._actions:
        yield "| argument | meaning |\n|---|---|"
        for action in parser._actions:
            yield f"| `{_name(action)}` | {cell(action.help or '')} |"
        yield ""


def _name(action: argparse.Action) -> str:
    value = action.metavar or (" or ".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return str(value)
    return ", ".join(action.option_strings) + (f" {value}" if action.nargs != 0 else "")
