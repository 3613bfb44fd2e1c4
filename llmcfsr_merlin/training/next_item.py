"""The default procedure: next-item (or masked-item) training by Transformers4Rec's Trainer."""

import llmcfsr_merlin.runtime.merlin_compat  # noqa: F401

# isort: split
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from merlin.schema import ColumnSchema, Schema, Tags

from llmcfsr_merlin.dataset.names import ITEM, ROW
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.checkpoints import whole_checkpoints
from llmcfsr_merlin.training.data_parallel import fit_in_processes
from llmcfsr_merlin.training.distillation import Distillation, similar_users
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.t4rec import Auxiliary
from llmcfsr_merlin.training.trainer import fit, load_schema


def train_next_item(training: Training, network: DualViewNetwork) -> list[dict]:
    """Train until validation NDCG@10 (full ranking) stops improving, in train.processes processes."""
    settings, prepared, work = training.settings, training.dataset.prepared, training.work
    schema = load_schema(prepared)
    files, train_schema, distillation = training.files["train"], schema, None
    if settings.distil:
        files, train_schema, distillation = _distillation(training, network, schema)
    table = training.item_table
    device = choose_device(settings.device)
    auxiliary = Auxiliary(None if table is None else torch.from_numpy(table).to(device), distillation)
    splits = {"train": files, "valid": training.files["valid"]}
    if settings.processes > 1:
        return fit_in_processes(
            network, settings, prepared, splits, work, auxiliary, training.report, training.exclude_history
        )
    checkpoints = whole_checkpoints(work)
    return fit(
        network, settings, schema, splits, train_schema, work, auxiliary, training.report, training.exclude_history,
        str(checkpoints[-1]) if checkpoints else None,
    )  # fmt: skip


def _distillation(
    training: Training, network: DualViewNetwork, schema: Schema
) -> tuple[list[str], Schema, Distillation]:
    """The train split with the rows numbered, its schema, and similar users by the mean vector of the history."""
    vectors = network.items.vectors.semantic
    if vectors is None:
        raise InputError("train.distil compares users by item vectors: expected a model with semantic vectors")
    table = torch.nn.functional.normalize(vectors, dim=-1)
    numbered, profiles, start = Path(training.work) / "train.parquet", [], 0
    with pq.ParquetWriter(numbered, pa.schema([(ITEM, pa.list_(pa.int64())), (ROW, pa.int64())])) as writer:
        for file in training.files["train"]:
            lists = pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks()
            count = len(lists)
            writer.write_table(pa.table({ITEM: lists, ROW: np.arange(start, start + count)}))
            items, offsets = torch.tensor(lists.flatten().to_numpy()), torch.tensor(np.array(lists.offsets[:-1]))
            profiles.append(torch.nn.functional.embedding_bag(items, table, offsets - offsets[0], mode="mean"))
            start += count
    neighbours = similar_users(torch.cat(profiles), training.settings.distil_users)
    rows = ColumnSchema(ROW, dtype="int64", tags=[Tags.CATEGORICAL])  # without a tag the loader leaves it out
    return [str(numbered)], schema + Schema([rows]), Distillation(neighbours, network.width)
