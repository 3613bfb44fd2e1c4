"""Shared by every transformers Trainer here: arguments, checkpoints, resuming, early stopping, training history.

Two Trainers build on it: Transformers4Rec's over the Merlin dataloader (t4rec_trainer.py) and transformers' own over
batches in memory (plain_trainer.py), for machines without Merlin or with a GPU but no matching cudf.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors.torch import load_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.runtime.reporters import reporters
from llmcfsr_merlin.runtime.supported import fits
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.averaging import WeightAverage
from llmcfsr_merlin.training.batches import Batches
from llmcfsr_merlin.training.checkpoints import remove_old_checkpoints, seal_checkpoint, stale_epochs
from llmcfsr_merlin.training.distillation import Distillation
from llmcfsr_merlin.training.memory import ranked_users
from llmcfsr_merlin.training.objective import Auxiliary
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.tail_training import TailTraining

BEST = "eval_/next-item/ndcg_at_10"
_ARGUMENTS = TrainingArguments.__dataclass_fields__
# Renamed in transformers 4.41 and 4.34.
_EVALUATION = "eval_strategy" if "eval_strategy" in _ARGUMENTS else "evaluation_strategy"
ON_CPU = "use_cpu" if "use_cpu" in _ARGUMENTS else "no_cuda"
# Fused: one pass over the weights instead of ten saves a tenth of a step; on CPU since torch 2.4.
_ADAMW = "adamw_torch_fused" if fits(torch.__version__, ">=2.4") else "adamw_torch"
# transformers 4.27 (the Merlin container) has no such argument: there the Trainer's own checkpoints, which live only
# while a training runs, are in torch's format. What this project writes and reads is safetensors everywhere.
# transformers 5 has none either: it writes safetensors only.
_SAFETENSORS = {"save_safetensors": True} if "save_safetensors" in _ARGUMENTS else {}
_DISTILLATION, _AVERAGE = "distillation.safetensors", "average.safetensors"  # in a checkpoint


class Resumable(Trainer):
    """Mixin for a Trainer: its checkpoints are sealed and resumable, and it trains in parallel with others
    (data_parallel.py)."""

    distillation: Distillation | None = None
    """Objects whose state belongs to a checkpoint."""
    average: WeightAverage | None = None
    """Evaluated instead of the weights, and saved in a checkpoint beside them."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with nullcontext() if self.average is None else self.average.taken():
            return super().evaluate(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if torch.distributed.is_initialized():
            # Not DistributedDataParallel: it would broadcast the frozen vectors of all items at every step.
            for weight in self.model.parameters():
                if weight.grad is not None:
                    torch.distributed.all_reduce(weight.grad)
                    weight.grad /= torch.distributed.get_world_size()
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: object, **metrics: Any) -> None:
        super()._save_checkpoint(model, trial, **metrics)  # metrics: until transformers 4.48
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.distillation is not None:
            save_tensors(self.distillation.state(), folder / _DISTILLATION)
        if self.average is not None:
            save_tensors(self.average.state(), folder / _AVERAGE)
        seal_checkpoint(folder)
        remove_old_checkpoints(folder.parent, self.state.best_model_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # torch >= 2.6 reads checkpoints without pickle and must be told the plain numpy types in the random state.
        allow = getattr(torch.serialization, "add_safe_globals", None)
        if allow is not None:
            _reconstruct = np.zeros(0).__reduce__()[0]  # numpy 2.0 moved it from numpy.core to numpy._core
            allow([_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), type(np.dtype(np.int64))])
        super()._load_rng_state(checkpoint)


class KnownParts(nn.Module):
    """Mixin for a Trainer's model: the Trainer lists modules and parameters several times per step; cached here, since
    they do not change during training. On a GPU listing them took more than half a step."""

    _known: list | None = None

    def train(self, mode: bool = True) -> "KnownParts":
        return self if mode == self.training else super().train(mode)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        if prefix or not recurse or not remove_duplicate:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        if self._known is None:
            self._known = list(super().named_parameters())
        return iter(self._known)


def trainer_arguments(
    train: TrainConfig, work: Path, steps: int, n_items: int, *, evaluate: bool = True
) -> dict[str, object]:
    """Keyword arguments of TrainingArguments. train: its batch_size is set. steps: per epoch. evaluate: after each
    epoch, with a checkpoint."""
    _forget_precision()
    when = "epoch" if evaluate else "no"
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": ranked_users(n_items),
        "num_train_epochs": train.epochs,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "lr_scheduler_type": train.schedule,
        # Transformers4Rec's scheduler reads no warmup_ratio.
        "warmup_steps": train.epochs * steps // 20 if train.schedule == "linear" else 0,
        "optim": _ADAMW,
        "save_strategy": when,
        "logging_strategy": "epoch",
        "logging_nan_inf_filter": False,  # it would hide non-finite losses, which `run_trainer` refuses
        "load_best_model_at_end": evaluate,
        "metric_for_best_model": BEST,
        "greater_is_better": True,
        "max_grad_norm": 5.0,
        "seed": train.seed,
        "bf16": train.precision == "bfloat16",
        "report_to": [],
        "log_level": "error",
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_drop_last": False,
        **_SAFETENSORS,
        _EVALUATION: when,
        ON_CPU: choose_device(train.device).type == "cpu",
    }


def _forget_precision() -> None:
    """Undo bfloat16: a Trainer leaves it to all later ones in its process, through the environment and accelerate."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    with suppress(ImportError):  # before transformers 4.31 it may be missing
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state()


def one_device(arguments: TrainingArguments) -> TrainingArguments:
    """With several visible GPUs the Trainer would use DataParallel; here each process trains on one."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def callbacks(train: TrainConfig, report: Callable[[str], None], evaluate: bool = True) -> list[TrainerCallback]:
    return [EarlyStoppingCallback(early_stopping_patience=train.patience), _EpochReport(report)] if evaluate else []


def run_trainer(
    make: Callable[[TrainConfig], Trainer],
    network: DualViewNetwork,
    training: Training,
    auxiliary: Auxiliary,
    checkpoint: str | None,
) -> list[dict]:
    """Train a network in place to its best epoch; return its history, see training.fit.fit_model.

    make: the Trainer for these settings. checkpoint: a whole one of training.work to go on from (checkpoints.py).
    InputError if the loss does not stay finite.
    """
    train, stale = training.settings, 0
    if checkpoint is not None:
        epochs, stale = stale_epochs(Path(checkpoint), BEST)
        if stale >= train.patience:  # it was stopped after training ended, before the next step
            train = train.model_copy(update={"epochs": epochs})
    trainer = make(train)
    trainer.distillation = auxiliary.distillation
    average = None
    if train.average:
        average = trainer.average = WeightAverage(network, train.average * len(trainer.get_train_dataloader()))
        trainer.add_callback(_Averaging(average))
    if auxiliary.tail is not None:
        trainer.add_callback(_Rows(auxiliary.tail, network))
    trainer.args.run_name = training.watch.name
    for reporter in reporters(training.watch):
        trainer.add_callback(reporter)
    if not sys.stderr.isatty():
        trainer.add_callback(_Steps())
    trainer.remove_callback(PrinterCallback)  # it prints dictionaries; _EpochReport logs one line instead
    if checkpoint is not None:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):  # its counter restarts on resume
                callback.early_stopping_patience_counter = stale
        if auxiliary.distillation is not None:
            auxiliary.distillation.restore(load_file(Path(checkpoint) / _DISTILLATION))
        if average is not None:
            average.restore(load_file(Path(checkpoint) / _AVERAGE))
    trainer.train(resume_from_checkpoint=checkpoint)
    if average is not None:  # the Trainer has loaded the weights of the best epoch, not their average
        if trainer.state.best_model_checkpoint:
            average.restore(load_file(Path(trainer.state.best_model_checkpoint) / _AVERAGE))
        average.take()
    network.eval()
    history = _history(trainer.state.log_history)
    if not history or not math.isfinite(history[-1]["loss"]):
        raise InputError("training ended without a finite loss: lower train.learning_rate")
    return history


class _Averaging(TrainerCallback):
    def __init__(self, average: WeightAverage):
        self._average = average

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._average.update()


class _Rows(TrainerCallback):
    def __init__(self, tail: TailTraining, network: DualViewNetwork):
        self._tail, self._network = tail, network

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._tail.start_epoch(round(state.epoch or 0), self._network)


class Order(TrainerCallback):
    """Tells the batches the epoch; older Trainers only tell torch's samplers."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._batches.set_epoch(round(state.epoch or 0))


class _Steps(TrainerCallback):
    """Logs how far a training is if no terminal shows the Trainer's own bar."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress = Progress(state.max_steps, "training", "steps", start=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.update(state.global_step - self._progress.n)


class _EpochReport(TrainerCallback):
    """Reports one line per epoch: the model's name and its validation metrics."""

    def __init__(self, report: Callable[[str], None]):
        self.report = report

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if losses and metrics:
            self.report(
                f"epoch {state.epoch:.0f}/{args.num_train_epochs}: loss {losses[-1]:.4f}, validation NDCG@10 "
                f"{metrics[BEST]:.4f} HR@10 {metrics[BEST.replace('ndcg', 'hr')]:.4f}"
            )


def _history(log: list[dict]) -> list[dict]:
    epochs: dict[int, dict] = {}
    for entry in log:
        row = epochs.setdefault(round(entry.get("epoch", 0)), {"epoch": round(entry.get("epoch", 0))})
        if "loss" in entry:
            row["loss"] = entry["loss"]
        if BEST in entry:
            row |= {
                "ndcg@10": entry[BEST],
                "hr@10": entry[BEST.replace("ndcg", "hr")],
                "seconds": entry["eval_runtime"],
            }
    return [row for _, row in sorted(epochs.items()) if "loss" in row and "ndcg@10" in row]
