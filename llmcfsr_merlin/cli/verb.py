"""What a verb of the command line is; each stands in a `*_verb.py`, and main.py lists them.

A verb's file imports at its top only what costs nothing: `llmcfsr --help` loads all of them.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """`llmcfsr <name>`; a name of two words is an action of a group.

    arguments: adds them to its parser. run: takes the parsed ones, returns an exit code or None. item_ids: whether it
    takes the ids of items, which may look like options (item_ids.py).
    """

    name: str
    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
    item_ids: bool = False
