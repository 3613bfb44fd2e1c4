"""Arguments shared by several verbs: a recipe with its overrides, or a finished run."""

from argparse import ArgumentParser, Namespace
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcfsr_merlin.config.load import Config


def add_recipe(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="recipe name (demo, yelp, fashion, beauty) or YAML file")
    parser.add_argument("--run", type=Path, help="run directory (default runs/<recipe>)")
    add_overrides(parser)
    parser.add_argument("--force", action="store_true", help="also run stages that are up to date")


def add_overrides(parser: ArgumentParser) -> None:
    parser.add_argument("--model", help="apply a model preset, e.g. sasrec, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. train.epochs=3")


def add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")


def config_of(arguments: Namespace) -> "Config":
    """The settings from a recipe, --model and --set."""
    from llmcfsr_merlin.config.load import Config

    return Config.load(arguments.recipe, arguments.set, arguments.model)


def directory_of(arguments: Namespace, config: "Config") -> Path:
    return arguments.run or Path("runs") / config.name


def held(run: Path, out: Path) -> AbstractContextManager:
    """The run's lock if `out` is inside the run; reading alone needs no lock."""
    from llmcfsr_merlin.runtime.lock import run_lock

    return run_lock(run) if out.resolve().is_relative_to(run.resolve()) else nullcontext()
