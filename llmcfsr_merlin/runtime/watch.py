"""What train.report_to says of a training: the tools that follow it, where their local files go, and its name."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llmcfsr_merlin.runtime.errors import MissingDependency

_INSTALL = {"tensorboard": "'llmcfsr-merlin[watch]'", "mlflow": "'llmcfsr-merlin[watch]'", "wandb": "wandb"}
LOGS = "logs"  # folder of the run


class Watch(NamedTuple):
    """tools: as in train.report_to; folder: for local files; name: of the training, recipe/stage."""

    tools: tuple[str, ...] = ()
    folder: Path = Path(LOGS)
    name: str = "run/train"


def require(tools: Sequence[str]) -> None:
    """MissingDependency, which names the package, if one of the tools is not installed."""
    for name in tools:
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(
                f"train.report_to={name} needs the package {name}: pip install {_INSTALL[name]}, or leave it out"
            )
