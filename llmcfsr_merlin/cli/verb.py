"""A verb of the command line; each lives in a `*_verb.py`, and main.py lists them.

A verb's file keeps its top-level imports cheap: `llmcfsr --help` loads all of them.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """`llmcfsr <name>`; a two-word name is an action within a group.

    arguments: adds them to the verb's parser. run: takes the parsed arguments, returns an exit code or None. item_ids:
    whether it takes item ids, which may look like options (item_ids.py).
    """

    name: str
    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
    item_ids: bool = False
