"""How a network is trained, by name; a baseline with a procedure of its own is a function, named `module:function`.

    procedure(training, network) -> history: trains the network in place to its best epoch
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import load_class
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork

PROCEDURES = {"transformers4rec": "llmcfsr_merlin.training.next_item:train_next_item"}


class Training(NamedTuple):
    """What a procedure gets. files: Parquet of `train` and of the `valid` rows that epochs are chosen by."""

    settings: TrainConfig
    dataset: Dataset
    files: dict[str, list[str]]
    work: Path
    item_table: np.ndarray | None = None
    exclude_history: bool = False
    report: Callable[[str], None] = lambda line: None


def training_procedure(name: str) -> Callable[[Training, DualViewNetwork], list[dict]]:
    """A procedure by its name or by `module:function`; InputError for an unknown one."""
    if name in PROCEDURES:
        module, _, function = PROCEDURES[name].partition(":")
        return getattr(import_module(module), function)
    if ":" in name:
        return load_class(name)
    raise InputError(f"train.procedure: expected {', '.join(PROCEDURES)} or module:function, found {name!r}")
