"""`llmcfsr search`: hyper-parameter search on the validation items."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.recipe_arguments import add_recipe, config_of, directory_of
from llmcfsr_merlin.cli.verb import Verb
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import STAGES, resource


def _arguments(parser: ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--space",
        type=Path,
        help="YAML of value lists, e.g. train.negatives: [256, 1024] (default: the built-in space)",
    )
    parser.add_argument("--trials", type=int, default=12, help="number of settings to train (default 12)")


def _run(arguments: Namespace) -> None:
    """Run the stages before training, then the trials; print them best first and write a file for --model."""
    from rich.table import Table

    from llmcfsr_merlin.config.layers import read_yaml
    from llmcfsr_merlin.pipeline import run_stages
    from llmcfsr_merlin.runtime.console import show
    from llmcfsr_merlin.runtime.lock import run_lock
    from llmcfsr_merlin.training.search import BEST, search

    config = config_of(arguments)
    directory = directory_of(arguments, config)
    path = arguments.space or resource("pipelines") / "search" / "space.yaml"
    if not path.is_file() or not isinstance(space := read_yaml(path), dict):
        raise InputError(f"--space: expected a YAML file of settings and lists of values, found {path}")
    if arguments.trials < 1:
        raise InputError(f"--trials: expected at least 1, found {arguments.trials}")
    with run_lock(directory):
        run_stages(config, directory, STAGES[: 3 if config.model.reads else 2])
        found = search(config, directory, space, arguments.trials)
    table = Table(title="settings by validation NDCG@10 (full ranking)", title_justify="left")
    numbers = [key for key in found[0] if key not in ("trial", "settings")]
    settings = list(found[0]["settings"])
    for key in (*settings, *numbers):
        table.add_column(key, justify="right")
    for row in found:
        table.add_row(*(str(row["settings"][key]) for key in settings), *(str(row[key]) for key in numbers))
    show(table)
    print(f"use the best: llmcfsr run {arguments.recipe} --model {directory / 'search' / BEST}")
    print(json.dumps({"run": str(directory), "trials": len(found), "best": found[0]}))


VERB = Verb("search", "hyper-parameter search on the validation items with Optuna", _arguments, _run)
