"""`llmcfsr doctor`: what is installed."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.verb import Verb


def _arguments(_: ArgumentParser) -> None:
    """It takes none."""


def _run(_: Namespace) -> int:
    from llmcfsr_merlin.runtime.doctor import main

    return main()


VERB = Verb("doctor", "what is installed, what does not fit, and the fix", _arguments, _run)
