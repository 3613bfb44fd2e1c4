"""Trainings are followed in TensorBoard, MLflow or Weights & Biases by the callbacks of transformers' Trainer."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from llmcfsr_merlin.runtime.watch import Watch, require

_RANKING = re.compile(r"/next-item/")  # in the names of Transformers4Rec's metrics
_ours: dict[str, str] = {}  # environment variables that were not set by the user


class Reporter(TrainerCallback):
    """One of transformers' callbacks, which gets a training's start, numbers and end, but no model and no checkpoints.

    Metrics are called eval_ndcg_at_10 whichever Trainer ranked. end: called last.
    """

    def __init__(self, callback: TrainerCallback, end: Callable[[], object] = lambda: None):
        self.callback, self._end = callback, end

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.callback.on_train_begin(args, state, control, model=None)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        numbers = {_RANKING.sub("", name): value for name, value in (logs or {}).items()}
        self.callback.on_log(args, state, control, logs=numbers, model=None)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.callback.on_train_end(args, state, control, model=None)
        self._end()


def reporters(watch: Watch) -> list[Reporter]:
    """A callback for each tool. Local files go below watch.folder unless the tool's own environment says otherwise.

    MissingDependency if a tool is not installed.
    """
    require(watch.tools)
    folder = Path(watch.folder).resolve()
    if watch.tools:
        folder.mkdir(parents=True, exist_ok=True)
    return [_MADE[tool](folder, watch.name) for tool in watch.tools]


def _tensorboard(folder: Path, name: str) -> Reporter:
    from torch.utils.tensorboard import SummaryWriter

    return Reporter(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard" / name.replace("/", "-")))))


def _mlflow(folder: Path, name: str) -> Reporter:
    import mlflow

    _set("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
    if "MLFLOW_TRACKING_URI" in _ours:
        _set("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.7 wants a database unless it is told so
    _set("MLFLOW_EXPERIMENT_NAME", name.partition("/")[0])
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return Reporter(MLflowCallback())


def _wandb(folder: Path, name: str) -> Reporter:
    import wandb

    _set("WANDB_DIR", str(folder))
    _set("WANDB_PROJECT", name.partition("/")[0])
    return Reporter(WandbCallback(), wandb.finish)  # else the next training would go on in this run


_MADE = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def _set(name: str, value: str) -> None:
    """Set an environment variable unless the user did: transformers' callbacks read their settings there."""
    if os.environ.get(name) in (None, _ours.get(name)):
        os.environ[name] = _ours[name] = value


class _Settings(SimpleNamespace):
    """What the callbacks ask of a Trainer's arguments. A TrainingArguments would set up accelerate's devices anew."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    to_sanitized_dict = to_dict

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, default=str)


class Reporting:
    """The reporters of a training loop that has no Trainer. settings: are recorded as its arguments."""

    def __init__(self, watch: Watch, work: Path, **settings: Any):
        self._callbacks = reporters(watch)
        self._state, self._control = TrainerState(), TrainerControl()
        self._settings: Any = _Settings(run_name=watch.name, output_dir=str(work), logging_steps=1, **settings)
        for callback in self._callbacks:
            callback.on_train_begin(self._settings, self._state, self._control)

    def log(self, step: int, **numbers: float) -> None:
        self._state.global_step = step
        for callback in self._callbacks:
            callback.on_log(self._settings, self._state, self._control, logs=numbers)

    def close(self) -> None:
        for callback in self._callbacks:
            callback.on_train_end(self._settings, self._state, self._control)
