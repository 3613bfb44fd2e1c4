"""Training by Transformers4Rec's Trainer from the Merlin dataloader: set up once, resumable, early stopping."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers4rec.torch as tr
from merlin.io import Dataset
from merlin.schema import ColumnSchema, Schema, Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from transformers import EarlyStoppingCallback, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers4rec.config.trainer import T4RecTrainingArguments
from transformers4rec.torch.utils.data_utils import MerlinDataLoader

from llmcfsr_merlin.cluster import available_memory
from llmcfsr_merlin.config import ModelConfig, TrainConfig
from llmcfsr_merlin.contract import ITEM, ROW, SCHEMA
from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.model.distillation import Distillation, similar_users
from llmcfsr_merlin.model.memory import check_memory, ranked_users
from llmcfsr_merlin.model.network import DualViewNetwork
from llmcfsr_merlin.model.t4rec import Auxiliary, to_t4rec
from llmcfsr_merlin.model.transitions import count_transitions
from llmcfsr_merlin.validation import choose_match

_BEST = "eval_/next-item/ndcg_at_10"
_NOTHING = Auxiliary()
# One pass over the weights instead of ten: a tenth of a step on CPU, where torch has it from 2.4 on.
_ADAMW = "adamw_torch_fused" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4) else "adamw_torch"
# transformers 4.27 (the Merlin container) has no such argument: there the Trainer's own checkpoints, which live only
# while a training runs, are in torch's format. What this project writes and reads is safetensors everywhere.
_SAFETENSORS = {"save_safetensors": True} if "save_safetensors" in T4RecTrainingArguments.__dataclass_fields__ else {}


class _Trainer(tr.Trainer):
    """Transformers4Rec's Trainer, able to resume under torch 2.6 and newer."""

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
    return loader


def split_files(prepared: Path, split: str) -> list[str]:
    """Part files of a split in order; InputError where there is none."""
    files = sorted(str(path) for path in (Path(prepared) / split).glob("*.parquet"))
    if not files:
        raise InputError(f"expected Parquet files in {Path(prepared) / split}, found none: run `llmcfsr prepare` first")
    return files


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"train.device: expected a CUDA device for {name!r}, found none: use cpu or auto")
    return torch.device(name)


def train_network(
    model: ModelConfig,
    train: TrainConfig,
    prepared: Path,
    work: Path,
    *,
    rows: int,
    max_length: int,
    train_counts: np.ndarray,
    vectors: np.ndarray | None,
    item_table: np.ndarray | None = None,
    exclude_history: bool = False,
    tail_item: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[DualViewNetwork, list[dict]]:
    """Train until validation NDCG@10 (full ranking) stops improving; return the best network and its history.

    prepared: the directory of the splits. work: where checkpoints are kept; an interrupted training resumes from them.
    train_counts: int64 [V]. vectors: float32 [V, D] or None. item_table: float32 [V, d] of a trained model, for
    train.align_to. exclude_history: validate, and choose the weights of the matches, without the user's own items.
    tail_item: an item with fewer training interactions is a tail item, for train.tail_tolerance. The history returned
    has one dict an epoch: epoch, loss, hr@10, ndcg@10, seconds.
    """
    device = choose_device(train.device)
    train = train.model_copy(update={"batch_size": train.batch_size or _batch_size(split_files(prepared, "train"))})
    check_memory(model, rows, None if vectors is None else vectors.shape[1], _free_memory(device))
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(train.seed)
    network = DualViewNetwork(model, rows, max_length, None if vectors is None else vectors.shape[1])
    schema = load_schema(prepared)
    files, train_schema, distillation = split_files(prepared, "train"), schema, None
    transitions = None
    if model.transition_neighbours:
        report("counting which items follow which")
        codes, weights = count_transitions(files, rows, train_counts, model.transition_neighbours)
        transitions = torch.from_numpy(codes), torch.from_numpy(weights)
    network.initialise(
        torch.from_numpy(train_counts), None if vectors is None else torch.from_numpy(vectors), transitions
    )
    if train.distil:
        files, train_schema, distillation = _distillation(files, schema, vectors, train, network, work)
    loaders = {
        "train": data_loader(files, train_schema, train.batch_size, True, device),
        "valid": data_loader(_validation_sample(prepared, work, train), schema, ranked_users(rows), False, device),
    }
    auxiliary = Auxiliary(None if item_table is None else torch.from_numpy(item_table).to(device), distillation)
    trainer = make_trainer(network, train, schema, loaders, work, auxiliary, report, exclude_history=exclude_history)
    try:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
    finally:
        for loader in loaders.values():
            loader.dataset.stop()
    network.eval()
    history = _history(trainer.state.log_history)
    if not history or not math.isfinite(history[-1]["loss"]):
        raise InputError("training ended without a finite loss: lower train.learning_rate")
    if model.content_match or model.transition_neighbours:
        tail = torch.from_numpy(train_counts < tail_item)
        chosen = choose_match(network, loaders["valid"], tail, train.tail_tolerance, exclude_history)
        report(
            f"chosen on validation: content match {chosen.gamma:g}, {chosen.cold:g} more for an item never seen; "
            f"transitions {chosen.transition:g}"
        )
    return network, history


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
        per_device_eval_batch_size=ranked_users(network.rows),
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
    trainer.remove_callback(PrinterCallback)  # it prints dictionaries; _EpochReport says the same in a line
    return trainer


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def _batch_size(files: list[str]) -> int:
    """Few large steps teach a small log nothing (measured on 406 users: NDCG@10 .39 after 32 steps, .97 after 200)."""
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    return min(256, max(16, rows // 64))


def _validation_sample(prepared: Path, work: Path, train: TrainConfig) -> list[str]:
    """Files of the validation rows that are ranked after each epoch: the whole split, or every n-th row of it."""
    files = split_files(prepared, "valid")
    rows = sum(pq.read_metadata(file).num_rows for file in files)
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


def _distillation(
    files: list[str],
    schema: Schema,
    vectors: np.ndarray | None,
    train: TrainConfig,
    network: DualViewNetwork,
    work: Path,
) -> tuple[list[str], Schema, Distillation]:
    """The train split with the rows numbered, its schema, and who is like whom by the mean vector of the history."""
    if vectors is None:
        raise InputError("train.distil compares users by item vectors: expected a model with semantic vectors")
    numbered, profiles, start = work / "train.parquet", [], 0
    with pq.ParquetWriter(numbered, pa.schema([(ITEM, pa.list_(pa.int64())), (ROW, pa.int64())])) as writer:
        for file in files:
            lists = pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks()
            count = len(lists)
            writer.write_table(pa.table({ITEM: lists, ROW: np.arange(start, start + count)}))
            codes, offsets = torch.tensor(lists.flatten().to_numpy()), torch.tensor(np.array(lists.offsets[:-1]))
            table = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1)
            profiles.append(torch.nn.functional.embedding_bag(codes, table, offsets - offsets[0], mode="mean"))
            start += count
    neighbours = similar_users(torch.cat(profiles), train.distil_users)
    width = len(network.config.views) * network.config.hidden
    rows = ColumnSchema(ROW, dtype="int64", tags=[Tags.CATEGORICAL])  # without a tag the loader leaves it out
    return [str(numbered)], schema + Schema([rows]), Distillation(neighbours, width)


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
