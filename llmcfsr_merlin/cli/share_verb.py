"""`llmcfsr share`: a run's model as a folder to upload."""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.recipe_arguments import add_run
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model and its card")


def _run(arguments: Namespace) -> None:
    from llmcfsr_merlin.serving.sharing import share

    names = share(arguments.run, arguments.out)
    print(f"{arguments.out}: {', '.join(names)}")
    print(f"read its README.md, then upload it: hf upload ORG/NAME {shlex.quote(str(arguments.out))} .")


VERB = Verb("share", "write a run's model and its card into a folder to upload", _arguments, _run)
