"""Training procedures by name; a baseline with its own procedure is a function, named `module:function`.

procedure(training, network) -> history: trains the network in place to its best epoch
"""

import importlib.util
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.extensions import load_class
from llmcfsr_merlin.runtime.watch import Watch
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork

PROCEDURES = {
    "transformers4rec": "llmcfsr_merlin.training.next_item:by_transformers4rec",
    "transformers": "llmcfsr_merlin.training.next_item:by_transformers",
}
_TRAINERS = {"transformers4rec": "t4rec_trainer", "transformers": "plain_trainer"}


class Training(NamedTuple):
    """Input of a procedure. files: Parquet of `train` and of the `valid` rows for early stopping."""

    settings: TrainConfig
    dataset: Dataset
    files: dict[str, list[str]]
    work: Path
    item_table: np.ndarray | None = None
    exclude_history: bool = False
    report: Callable[[str], None] = lambda line: None
    watch: Watch = Watch()


Fit = Callable[..., list[dict]]
"""fit(network, training, auxiliary, checkpoint) -> history, of a Trainer."""


def resolved(name: str) -> str:
    """The procedure that `auto` selects on this machine."""
    if name != "auto":
        return name
    return "transformers4rec" if importlib.util.find_spec("transformers4rec") else "transformers"


def training_procedure(name: str) -> Callable[[Training, DualViewNetwork], list[dict]]:
    """A procedure by its name or by `module:function`; InputError for an unknown one."""
    name = resolved(name)
    if name in PROCEDURES:
        module, _, function = PROCEDURES[name].partition(":")
        return getattr(import_module(module), function)
    if ":" in name:
        return load_class(name)
    raise InputError(f"train.procedure: expected auto, {', '.join(PROCEDURES)} or module:function, found {name!r}")


def fit_of(name: str) -> Fit:
    """The `fit` of a Trainer; MissingDependency without its library."""
    try:
        return import_module(f"llmcfsr_merlin.training.{_TRAINERS[name]}").fit
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"train.procedure={name} needs {error.name}, which is not installed: `llmcfsr doctor` says how, or set "
            "train.procedure=transformers"
        ) from error
