"""Transformers4Rec's Trainer over the Merlin dataloader."""

import llmcfsr_merlin.training.t4rec_compat  # noqa: F401

# isort: split
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers4rec.torch as tr
from merlin.core.compat import HAS_GPU, cudf
from merlin.dataloader.torch import Loader
from merlin.io import Dataset
from merlin.schema import ColumnSchema, Schema, Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from torch import Tensor, nn
from transformers4rec.config.trainer import T4RecTrainingArguments
from transformers4rec.torch.utils.data_utils import MerlinDataLoader

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import COUNT, ITEM, ROW, SCHEMA
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.batches import Batches, prefixes_of
from llmcfsr_merlin.training.memory import ranked_users
from llmcfsr_merlin.training.objective import Auxiliary, shortest_prefix
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.t4rec import to_t4rec
from llmcfsr_merlin.training.trainer import Order, Resumable, callbacks, one_device, run_trainer, trainer_arguments

_NOTHING = Auxiliary()
_BLOCK = 1 << 14  # training rows whose prefixes are in memory at once


class TrainerArguments(T4RecTrainingArguments):
    past_index = -1  # transformers 5 dropped it, Transformers4Rec reads it


class StockTrainer(tr.Trainer):
    """Transformers4Rec's Trainer, on transformers 4.27 to 5."""

    use_cuda_amp = False  # transformers 4.31 dropped it (accelerate casts), Transformers4Rec's evaluation reads it

    def compute_loss(self, model: nn.Module, inputs: tuple, return_outputs: bool = False, **_: Any) -> Any:
        # transformers 4.46 gives the number of items in the batch as well, which Transformers4Rec does not take.
        batch, beside = inputs
        if not isinstance(beside, int):
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        outputs = model(batch, training=True, count=beside)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(self, model: nn.Module, inputs: tuple, *arguments: Any, **settings: Any) -> Any:
        batch, beside = inputs
        if isinstance(beside, int):
            beside = None
        return super().prediction_step(model, (batch, beside), *arguments, **settings)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs)  # transformers 4.47 gives the time as well

    # Transformers4Rec calls these two on its results; transformers 4.31 and 5.0 dropped them. Nothing is to be
    # gathered: every process ranks all validation users.
    def _pad_across_processes(self, tensor: Tensor, pad_index: int = -100) -> Tensor:
        return tensor

    def _nested_gather(self, tensors: Tensor, name: str | None = None) -> Tensor:
        return tensors


class _Trainer(Resumable, StockTrainer):
    pass


def load_schema(prepared: Path) -> Schema:
    """The Merlin schema of the splits, reduced to the item column that the model reads."""
    return TensorflowMetadata.from_proto_text_file(str(prepared), SCHEMA).to_merlin_schema().select_by_name(ITEM)


def data_loader(
    paths: list[str], schema: Schema, batch_size: int, shuffle: bool, device: torch.device, seed: int = 0
) -> "MerlinDataLoader | Pairs":
    """Batches of ragged encoded ids; the model pads each batch to its own longest row.

    Merlin's dataloader, on a GPU if its cudf is available. Without cudf it would build a GPU's batches
    on the CPU, at a tenth of the speed at which the GPU consumes them: then batches come from memory.
    """
    if device.type == "cuda" and (not HAS_GPU or cudf is None):
        return Pairs(Batches(paths, batch_size, device, shuffle=shuffle, seed=seed))
    dataset = Dataset(paths, engine="parquet", cpu=device.type == "cpu", schema=schema)
    loader = MerlinDataLoader.from_schema(schema, dataset, batch_size, shuffle=shuffle)
    loader.dataset._buff.put_wait = 0.05  # the stock microsecond polling wastes a third of a core
    if device.type == "cpu":
        _flatten_by_numpy(loader.dataset)
    return loader


class Pairs:
    """Batches in the form that Transformers4Rec's Trainer expects, pairs of inputs and targets.

    There are no separate targets; their slot holds the number of items, since inputs must be tensors.
    """

    def __init__(self, batches: Batches):
        self.batches, self.dataset, self._batch_size = batches, batches.dataset, batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        for batch in self.batches:
            yield {name: batch[name] for name in (ITEM, ROW)}, batch[COUNT]


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
    network: DualViewNetwork, training: Training, auxiliary: Auxiliary = _NOTHING, checkpoint: str | None = None
) -> list[dict]:
    """Train a network in place to its best epoch, see trainer.run_trainer."""
    train, files = training.settings, training.files
    assert train.batch_size is not None, "fit_model chooses one"
    schema = train_schema = load_schema(training.dataset.prepared)
    prefixes = shortest_prefix(network, train)
    if auxiliary.distillation is not None or prefixes:
        files = files | {"train": [_numbered(files["train"], training.work, prefixes)]}
    if auxiliary.distillation is not None:
        rows = ColumnSchema(ROW, dtype="int64", tags=[Tags.CATEGORICAL])  # without a tag the loader skips it
        train_schema = schema + Schema([rows])
    device = choose_device(train.device)
    loaders = {
        "train": data_loader(files["train"], train_schema, train.batch_size, True, device, train.seed),
        "valid": data_loader(files["valid"], schema, ranked_users(network.n_items), False, device),
    }

    def make(settings: TrainConfig) -> tr.Trainer:
        return make_trainer(
            network, settings, schema, loaders, training.work, auxiliary, training.report,
            exclude_history=training.exclude_history,
        )  # fmt: skip

    try:
        return run_trainer(make, network, training, auxiliary, checkpoint)
    finally:
        for loader in loaders.values():
            if isinstance(loader, MerlinDataLoader):
                loader.dataset.stop()


def make_trainer(
    network: DualViewNetwork,
    train: TrainConfig,
    schema: Schema,
    loaders: dict[str, MerlinDataLoader | Pairs],
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
    arguments = trainer_arguments(train, work, len(loaders["train"]), network.n_items, evaluate=evaluate)
    return _Trainer(
        model=to_t4rec(network, schema, train, auxiliary, exclude_history),
        args=one_device(TrainerArguments(predict_top_k=0, **arguments)),
        schema=schema,
        train_dataloader=loaders["train"],
        eval_dataloader=loaders["valid"],
        compute_metrics=True,
        callbacks=[
            *callbacks(train, report, evaluate),
            *(Order(loader.batches) for loader in loaders.values() if isinstance(loader, Pairs)),
        ],
    )


def _numbered(files: list[str], work: Path, prefixes: int | None = None) -> str:
    """The training rows, or all their prefixes of at least so many items, in one file, with the row numbers beside
    them."""
    path, start = work / "train.parquet", 0
    with pq.ParquetWriter(path, pa.schema([(ITEM, pa.list_(pa.int64())), (ROW, pa.int64())])) as writer:
        for file in files:
            lists = pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks()
            for part in range(0, len(lists), _BLOCK):
                chosen = lists.slice(part, _BLOCK)
                rows = np.arange(len(chosen))
                if prefixes:
                    rows, chosen = _prefixes(chosen, prefixes)
                writer.write_table(pa.table({ITEM: chosen, ROW: start + part + rows}))
            start += len(lists)
    return str(path)


def _prefixes(lists: pa.ListArray, shortest: int) -> tuple[np.ndarray, pa.ListArray]:
    """The source row of each prefix, int64, and the prefixes."""
    starts = lists.offsets.to_numpy()
    rows, lengths = prefixes_of(np.diff(starts), shortest)
    ends = lengths.cumsum()
    places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[rows] - (ends - lengths), lengths)
    return rows, pa.ListArray.from_arrays(pa.array(np.append(0, ends).astype(np.int32)), lists.values.take(places))
