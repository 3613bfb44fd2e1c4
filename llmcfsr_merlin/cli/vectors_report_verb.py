"""`llmcfsr vectors report`: intrinsic evaluation of a run's item vectors."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.recipe_arguments import add_run, held
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=Path, help="folder (default RUN/vectors-report)")
    parser.add_argument(
        "--tail-below", type=int, default=4, help="training count below which an item is a tail item (default 4)"
    )


def _run(arguments: Namespace) -> None:
    from llmcfsr_merlin.runtime.manifest import Manifest
    from llmcfsr_merlin.runtime.ownership import claim_results
    from llmcfsr_merlin.text.diagnostics.vector_report import summary, vectors_report

    out = arguments.out or arguments.run / "vectors-report"
    for stage in ("ingest", "prepare", "embed"):
        Manifest.load(arguments.run / stage).verify(arguments.run / stage)
    with held(arguments.run, out):
        claim_results(out, ("report.json", "neighbours.txt", "map.png"))
        print(summary(vectors_report(arguments.run, out, arguments.tail_below)))
    print(f"figures, nearest neighbours by title and a map: {out}")


VERB = Verb("vectors report", "evaluate a run's item vectors without training a recommender", _arguments, _run)
