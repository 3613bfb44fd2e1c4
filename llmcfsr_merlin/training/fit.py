"""Fit a model on a dataset: its scorers, including the trained network, then calibrate their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import ITEM, history_rule
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.free_memory import available_memory
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.watch import Watch, require
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.scorer import FitContext
from llmcfsr_merlin.training.calibration import ValidationBatches, calibrate
from llmcfsr_merlin.training.memory import check_memory, ranked_users
from llmcfsr_merlin.training.procedures import Training, training_procedure

_NOBODY = Watch()


@dataclass(frozen=True)
class WarmStart:
    """model: what training goes on from, of the same settings and items. files: Parquet of the rows to train on.
    calibrate: whether the score weights are chosen anew; else those of the model stay."""

    model: Ensemble
    files: list[str]
    calibrate: bool = True


def fit_model(
    model: ModelConfig,
    train: TrainConfig,
    dataset: Dataset,
    work: Path,
    *,
    item_table: np.ndarray | None = None,
    exclude_history: bool = False,
    tail_item: int = 1,
    report: Callable[[str], None] = lambda line: None,
    warm: WarmStart | None = None,
    watch: Watch = _NOBODY,
) -> tuple[Ensemble, list[dict]]:
    """Fit every scorer of a model and calibrate their weights; returns the model and its training history.

    work: where checkpoints are kept; an interrupted training resumes from them. item_table: float32 [V, d] of a trained
    model, for train.align_to. exclude_history: choose epochs and weights without the user's own items (the weights of
    the other rule are calibrated too, for evaluation), and answer without them unless a question says otherwise.
    tail_item: an item with fewer training interactions is a tail item, for train.tail_tolerance. warm: what training
    goes on from. The history has one dict per epoch
    (epoch, loss, hr@10, ndcg@10, seconds), none if no scorer is trained. watch: the tools that follow the training.
    """
    device = choose_device(train.device)
    require(watch.tools)
    dataset = dataset.reading(model.reads)
    files = dataset.files("train") if warm is None else warm.files
    train = train.model_copy(update={"batch_size": train.batch_size or default_batch_size(_rows(files))})
    if warm is not None:
        # A part of the log has too few contexts of rare items to learn from.
        without = {"pretrain": None, "enhance_users": 0.0, "enhance_items": 0.0, "infer_up_to": 0}
        train = train.model_copy(update=without)
    elif model.network and bool(model.network.prior_items) != (train.pretrain == "reversed"):
        raise InputError(
            "model.scorers.network.prior_items and train.pretrain=reversed need each other: found "
            f"{model.network.prior_items} and {train.pretrain}"
        )
    check_memory(model, dataset.shape, _free_memory(device) // (train.processes if device.type == "cpu" else 1))
    work.mkdir(parents=True, exist_ok=True)
    valid = validation_sample(dataset, work, train)
    procedure = training_procedure(train.procedure)
    split = {"train": files, "valid": valid}
    training = Training(train, dataset, split, work, item_table, exclude_history, report, watch)
    torch.manual_seed(train.seed)
    context = FitContext(work, partial(procedure, training), report, device=device)
    if warm is not None:
        context = replace(context, start=warm.model.to(device).scorers)
    fitted = Ensemble.fit(model, dataset, context).to(device)  # a Trainer moves its network there alone
    fitted.history_rule = history_rule(exclude_history)
    _warn_of_rest(train, context.history, report)
    if warm is not None and not warm.calibrate:
        fitted.set_weights(warm.model.weights)
        fitted.history_weights = warm.model.history_weights
    elif len(fitted.features) > 1:
        batches = ValidationBatches(valid, ranked_users(dataset.shape.n_items), fitted.device)
        counts = dataset.train_counts
        weights = calibrate(
            fitted, batches, counts < tail_item, train.tail_tolerance, exclude_history, counts == 0,
            train.untrained_tolerance,
        )  # fmt: skip
        report(f"score weights calibrated on validation: {_weights_text(weights)}")
        for rule, other in fitted.history_weights.items():
            if rule != fitted.history_rule:
                report(f"for evaluation with the history {rule}: {_weights_text(other)}")
    return fitted, context.history


def counts_of(model: Ensemble, history: Sequence[dict] = ()) -> dict:
    """What a manifest and a model card say of a fitted model and its training history."""
    counts: dict = {"model": model.config.name, "parameters": sum(weight.numel() for weight in model.parameters())}
    if history:
        best = max(history, key=lambda epoch: epoch["ndcg@10"])
        counts |= {
            "epochs": len(history), "best_epoch": best["epoch"], "validation ndcg@10": round(best["ndcg@10"], 5),
        }  # fmt: skip
    return counts | {"weights": model.weights}


def _weights_text(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def _warn_of_rest(train: TrainConfig, history: list[dict], report: Callable[[str], None]) -> None:
    if train.loss == "bce" and 0 < len(history) < train.epochs:
        report(
            f"stopped after {len(history)} epochs, {train.patience} of them without improvement: one-negative BCE may "
            "stagnate for ten epochs before it learns; raise train.patience if the loss has hardly moved"
        )


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def default_batch_size(rows: int) -> int:
    """Smaller batches for small logs, which need enough steps (406 users: NDCG@10 .39 after 32 steps, .97 after
    200)."""
    return min(256, max(4, rows // 160))


def _rows(files: list[str]) -> int:
    return sum(pq.read_metadata(file).num_rows for file in files)


def validation_sample(dataset: Dataset, work: Path, train: TrainConfig) -> list[str]:
    """Files of the validation rows ranked after each epoch: the whole split, or a sample of every n-th row,
    written into `work`.
    """
    files = dataset.files("valid")
    rows = _rows(files)
    if rows <= train.validation_users:
        return files
    chosen = np.arange(train.validation_users) * rows // train.validation_users
    sample, start = work / "valid.parquet", 0
    with pq.ParquetWriter(sample, pa.schema([(ITEM, pa.list_(pa.int64()))])) as writer:
        for file in files:
            lists = pq.read_table(file, columns=[ITEM]).cast(writer.schema)
            here = chosen[(chosen >= start) & (chosen < start + len(lists))] - start
            writer.write_table(lists.take(here))
            start += len(lists)
    return [str(sample)]
