"""`llmcfsr run`, all stages of a recipe, and one verb per stage."""

import json
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmcfsr_merlin.cli.recipe_arguments import add_recipe, config_of, directory_of
from llmcfsr_merlin.cli.verb import Verb
from llmcfsr_merlin.runtime.layout import STAGES

if TYPE_CHECKING:
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.runtime.manifest import Manifest

_HELP = {
    "ingest": "raw logs and metadata -> Parquet of interactions and items",
    "prepare": "filtering, encoded ids, sequences and splits, with NVTabular",
    "embed": "item attributes -> semantic vectors, with a language model",
    "train": "train the model and the trained baselines",
    "evaluate": "measure ranking quality on the test items, overall and on the long tail",
    "export": "write a Triton model repository",
}


def _arguments(parser: ArgumentParser, stages: tuple[str, ...]) -> None:
    add_recipe(parser)
    parser.set_defaults(stages=stages)
    if stages == ("evaluate",):
        parser.add_argument(
            "--against", type=Path, metavar="RUN", help="also print paired tests against another run's model"
        )


def _run(arguments: Namespace) -> None:
    """Run stages of a recipe, then print their durations, the results and one line of JSON."""
    from llmcfsr_merlin.cli.results import show_results, show_stages
    from llmcfsr_merlin.pipeline import run_stages

    config = config_of(arguments)
    directory = directory_of(arguments, config)
    manifests = run_stages(config, directory, arguments.stages, force=arguments.force)
    show_stages(manifests)
    line = {"run": str(directory), "stages": {name: _summary(manifest) for name, manifest in manifests.items()}}
    if "evaluate" in manifests:
        line |= json.loads(show_results(config, directory))
        if getattr(arguments, "against", None):
            _compare(config, directory, arguments.against)
    print(json.dumps(line))


def _summary(manifest: "Manifest") -> dict:
    return {"seconds": manifest.seconds, "peak_memory_mb": manifest.peak_memory_mb}


def _compare(config: "Config", directory: Path, other: Path) -> None:
    from llmcfsr_merlin.cli.results import paired
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.dataset.names import RANKS
    from llmcfsr_merlin.evaluation.report.tables import comparison_table
    from llmcfsr_merlin.runtime.console import show
    from llmcfsr_merlin.runtime.manifest import Manifest

    against = Config.recorded(other)
    Manifest.load(other / "evaluate").verify(other / "evaluate")
    rows = paired(
        directory / "evaluate" / RANKS,
        config.model.name,
        other / "evaluate" / RANKS,
        against.model.name,
        directory,
        config,
    )
    show(comparison_table(rows, config.model.name, against.model.name))


VERBS = (
    Verb("run", "run all stages of a recipe", partial(_arguments, stages=STAGES), _run),
    *(Verb(stage, _HELP[stage], partial(_arguments, stages=(stage,)), _run) for stage in STAGES),
)
