"""Transformers4Rec's Trainer over the Merlin dataloader: made for a network and its splits, run, resumed."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed
import transformers4rec.torch as tr
from merlin.dataloader.torch import Loader
from merlin.io import Dataset
from merlin.schema import Schema
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, PrinterCallback
from transformers4rec.config.trainer import T4RecTrainingArguments
from transformers4rec.torch.utils.data_utils import MerlinDataLoader

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import ITEM, SCHEMA
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.checkpoints import seal_checkpoint, stale_epochs
from llmcfsr_merlin.training.distillation import Distillation
from llmcfsr_merlin.training.memory import ranked_users
from llmcfsr_merlin.training.t4rec import Auxiliary, to_t4rec

_BEST = "eval_/next-item/ndcg_at_10"
# One pass over the weights instead of ten: a tenth of a step on CPU, where torch has it from 2.4 on.
_ADAMW = "adamw_torch_fused" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4) else "adamw_torch"
# transformers 4.27 (the Merlin container) has no such argument: there the Trainer's own checkpoints, which live only
# while a training runs, are in torch's format. What this project writes and reads is safetensors everywhere.
_SAFETENSORS = {"save_safetensors": True} if "save_safetensors" in T4RecTrainingArguments.__dataclass_fields__ else {}
_NOTHING = Auxiliary()
_DISTILLATION = "distillation.safetensors"  # in a checkpoint


class _Trainer(tr.Trainer):
    """Transformers4Rec's Trainer, able to resume under torch 2.6 and newer, and beside others (data_parallel.py)."""

    distillation: Distillation | None = None
    """Whose states belong to a checkpoint."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if torch.distributed.is_initialized():
            # Not DistributedDataParallel: it would send the frozen vectors of all items around at every step.
            for weight in self.model.parameters():
                if weight.grad is not None:
                    torch.distributed.all_reduce(weight.grad)
                    weight.grad /= torch.distributed.get_world_size()
        return loss

    def _save_checkpoint(self, model, trial, metrics=None):
        super()._save_checkpoint(model, trial, metrics=metrics)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.distillation is not None:
            save_tensors(self.distillation.state(), folder / _DISTILLATION)
        seal_checkpoint(folder)
        super()._rotate_checkpoints(use_mtime=True, output_dir=self.args.output_dir)

    def _rotate_checkpoints(self, use_mtime=False, output_dir=None):
        """Not from inside _save_checkpoint: the old ones go when the new one is known to be whole."""

    def _load_rng_state(self, checkpoint):
        # torch >= 2.6 reads checkpoints without pickle and must be told the plain numpy types in the random state.
        allow = getattr(torch.serialization, "add_safe_globals", None)
        if allow is not None:
            from numpy.core.multiarray import _reconstruct

            allow([_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), type(np.dtype(np.int64))])
        super()._load_rng_state(checkpoint)


def load_schema(prepared: Path) -> Schema:
    """The Merlin schema of the splits, reduced to the item column that the model reads."""
    return TensorflowMetadata.from_proto_text_file(str(prepared), SCHEMA).to_merlin_schema().select_by_name(ITEM)


def data_loader(
    paths: list[str], schema: Schema, batch_size: int, shuffle: bool, device: torch.device
) -> MerlinDataLoader:
    """Batches of ragged item codes; the model pads each batch to its own longest row."""
    dataset = Dataset(paths, engine="parquet", cpu=device.type == "cpu", schema=schema)
    loader = MerlinDataLoader.from_schema(schema, dataset, batch_size, shuffle=shuffle)
    loader.dataset._buff.put_wait = 0.05  # the stock microsecond polls away a third of a core
    if device.type == "cpu":
        _flatten_by_numpy(loader.dataset)
    return loader


def _flatten_by_numpy(loader: Loader) -> None:
    """Merlin on the CPU flattens lists number by number in Python, which takes a small model 6% of an epoch."""

    def flatten(frame: pd.DataFrame) -> dict:
        tensors = {}
        for name, column in frame.items():
            if column.dtype == object:
                values, offsets = np.concatenate(column.to_numpy()), np.append(0, column.map(len).cumsum())
                tensors[name] = loader._to_tensor(pd.Series(values)), loader._to_tensor(pd.Series(offsets))
            else:
                tensors[name] = loader._to_tensor(column.to_frame())
        return tensors

    loader._convert_df_to_tensors = flatten


def fit(
    network: DualViewNetwork,
    train: TrainConfig,
    schema: Schema,
    files: dict[str, list[str]],
    train_schema: Schema,
    work: Path,
    auxiliary: Auxiliary = _NOTHING,
    report: Callable[[str], None] = lambda line: None,
    exclude_history: bool = False,
    checkpoint: str | None = None,
) -> list[dict]:
    """Train a network in place to its best epoch; return its history, see training.fit.fit_model.

    files: Parquet of `train` and `valid`, their columns `train_schema` and `schema`. checkpoint: a whole one of `work`
    to go on from (checkpoints.py). InputError where the loss does not stay finite.
    """
    device = choose_device(train.device)
    loaders = {
        "train": data_loader(files["train"], train_schema, train.batch_size, True, device),
        "valid": data_loader(files["valid"], schema, ranked_users(network.n_items), False, device),
    }
    if checkpoint is not None:
        epochs, stale = stale_epochs(Path(checkpoint), _BEST)
        if stale >= train.patience:  # it was stopped between the end of training and what comes after it
            train = train.model_copy(update={"epochs": epochs})
    trainer = make_trainer(network, train, schema, loaders, work, auxiliary, report, exclude_history=exclude_history)
    if checkpoint is not None:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):  # it starts to count anew, a whole training does not
                callback.early_stopping_patience_counter = stale
        if auxiliary.distillation is not None:
            auxiliary.distillation.restore(load_file(Path(checkpoint) / _DISTILLATION))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        for loader in loaders.values():
            loader.dataset.stop()
    network.eval()
    history = _history(trainer.state.log_history)
    if not history or not math.isfinite(history[-1]["loss"]):
        raise InputError("training ended without a finite loss: lower train.learning_rate")
    return history


def make_trainer(
    network: DualViewNetwork,
    train: TrainConfig,
    schema: Schema,
    loaders: dict[str, MerlinDataLoader],
    work: Path,
    auxiliary: Auxiliary = _NOTHING,
    report: Callable[[str], None] = lambda line: None,
    evaluate: bool = True,
    exclude_history: bool = False,
) -> tr.Trainer:
    """The Trainer of a network. train: its batch_size is set. loaders: `train` and `valid`. evaluate: after each epoch,
    with a checkpoint.

    exclude_history: validation ranks without the user's own items.
    """
    when = "epoch" if evaluate else "no"
    arguments = T4RecTrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=ranked_users(network.n_items),
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        lr_scheduler_type=train.schedule,
        # Transformers4Rec's scheduler reads no warmup_ratio.
        warmup_steps=train.epochs * len(loaders["train"]) // 20 if train.schedule == "linear" else 0,
        optim=_ADAMW,
        evaluation_strategy=when,
        save_strategy=when,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # it would hide what `fit` refuses
        save_total_limit=2,
        load_best_model_at_end=evaluate,
        metric_for_best_model=_BEST,
        greater_is_better=True,
        **_SAFETENSORS,
        predict_top_k=0,
        max_grad_norm=5.0,
        seed=train.seed,
        bf16=train.precision == "bfloat16",
        no_cuda=choose_device(train.device).type == "cpu",
        report_to=[],
        log_level="error",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_drop_last=False,
    )
    # With several GPUs in sight the Trainer would take DataParallel, which Transformers4Rec's models do not survive.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    trainer = _Trainer(
        model=to_t4rec(network, schema, train, auxiliary, exclude_history),
        args=arguments,
        schema=schema,
        train_dataloader=loaders["train"],
        eval_dataloader=loaders["valid"],
        compute_metrics=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=train.patience), _EpochReport(report)]
        if evaluate
        else [],
    )
    trainer.distillation = auxiliary.distillation
    trainer.remove_callback(PrinterCallback)  # it prints dictionaries; _EpochReport says the same in a line
    return trainer


class _EpochReport(tr.trainer.TrainerCallback):
    """One line an epoch: what is being trained and how good it is."""

    def __init__(self, report: Callable[[str], None]):
        self.report = report

    def on_evaluate(self, args, state, control, metrics=None, **_):
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if losses and metrics:
            self.report(
                f"epoch {state.epoch:.0f}/{args.num_train_epochs}: loss {losses[-1]:.4f}, validation NDCG@10 "
                f"{metrics[_BEST]:.4f} HR@10 {metrics[_BEST.replace('ndcg', 'hr')]:.4f}"
            )


def _history(log: list[dict]) -> list[dict]:
    epochs: dict[int, dict] = {}
    for entry in log:
        row = epochs.setdefault(round(entry.get("epoch", 0)), {"epoch": round(entry.get("epoch", 0))})
        if "loss" in entry:
            row["loss"] = entry["loss"]
        if _BEST in entry:
            row |= {
                "ndcg@10": entry[_BEST],
                "hr@10": entry[_BEST.replace("ndcg", "hr")],
                "seconds": entry["eval_runtime"],
            }
    return [row for _, row in sorted(epochs.items()) if "loss" in row and "ndcg@10" in row]
