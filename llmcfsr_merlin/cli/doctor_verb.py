"""`llmcfsr doctor`: check the installation."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.verb import Verb


def _arguments(_: ArgumentParser) -> None:
    """No arguments."""


def _run(_: Namespace) -> int:
    from llmcfsr_merlin.runtime.doctor.__main__ import main

    return main()


VERB = Verb("doctor", "check the installation: versions, conflicts and how to fix them", _arguments, _run)
