"""Stage train's work: make ready what a training reads, run the Trainer, choose the weights of the matches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from merlin.schema import ColumnSchema, Schema, Tags

from llmcfsr_merlin.config.schema import ModelConfig, TrainConfig
from llmcfsr_merlin.dataset.names import ITEM, ROW
from llmcfsr_merlin.runtime.engine import available_memory
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.scorers.transitions import count_transitions
from llmcfsr_merlin.training.calibration import Weights, choose_match
from llmcfsr_merlin.training.checkpoints import whole_checkpoints
from llmcfsr_merlin.training.data_parallel import fit_in_processes
from llmcfsr_merlin.training.distillation import Distillation, similar_users
from llmcfsr_merlin.training.memory import check_memory, ranked_users
from llmcfsr_merlin.training.t4rec import Auxiliary
from llmcfsr_merlin.training.trainer import choose_device, data_loader, fit, load_schema, split_files


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
    lexical: np.ndarray | None = None,
    item_table: np.ndarray | None = None,
    exclude_history: bool = False,
    tail_item: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[DualViewNetwork, list[dict]]:
    """Train until validation NDCG@10 (full ranking) stops improving; return the best network and its history.

    prepared: the directory of the splits. work: where checkpoints are kept; an interrupted training resumes from them.
    train_counts: int64 [V]. vectors: float32 [V, D] or None; lexical: [V, E] or None. item_table: float32 [V, d] of a
    trained model, for train.align_to. exclude_history: validate, and choose the weights of the matches, without the
    user's own items. tail_item: an item with fewer training interactions is a tail item, for train.tail_tolerance. The
    history returned has one dict an epoch: epoch, loss, hr@10, ndcg@10, seconds.
    """
    device = choose_device(train.device)
    train = train.model_copy(update={"batch_size": train.batch_size or _batch_size(split_files(prepared, "train"))})
    free = _free_memory(device) // (train.processes if device.type == "cpu" else 1)
    dimensions = [None if part is None else part.shape[1] for part in (vectors, lexical)]
    check_memory(model, rows, *dimensions, free)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(train.seed)
    network = DualViewNetwork(model, rows, max_length, *dimensions)
    schema = load_schema(prepared)
    files, train_schema, distillation = split_files(prepared, "train"), schema, None
    transitions = None
    if model.transition_neighbours:
        report("counting which items follow which")
        codes, weights = count_transitions(files, rows, train_counts, model.transition_neighbours, work)
        transitions = torch.from_numpy(codes), torch.from_numpy(weights)
    frozen = [None if part is None else torch.from_numpy(part) for part in (vectors, lexical)]
    network.initialise(torch.from_numpy(train_counts), frozen[0], transitions, frozen[1])
    if train.distil:
        files, train_schema, distillation = _distillation(files, schema, vectors, train, network, work)
    auxiliary = Auxiliary(None if item_table is None else torch.from_numpy(item_table).to(device), distillation)
    splits = {"train": files, "valid": validation_sample(prepared, work, train)}
    if train.processes > 1:
        history = fit_in_processes(network, train, prepared, splits, work, auxiliary, report, exclude_history)
    else:
        checkpoints = whole_checkpoints(work)
        history = fit(
            network, train, schema, splits, train_schema, work, auxiliary, report, exclude_history,
            str(checkpoints[-1]) if checkpoints else None,
        )  # fmt: skip
    if train.loss == "bce" and len(history) < train.epochs:
        report(
            f"stopped after {len(history)} epochs, without a better one for {train.patience}: one-negative BCE may "
            "rest for ten epochs before it learns; raise train.patience if the loss has hardly moved"
        )
    if model.content_match or model.transition_neighbours:
        chosen = choose_weights(
            network, splits["valid"], schema, train_counts < tail_item, train.tail_tolerance, exclude_history
        )
        report(
            f"chosen on validation: content match {chosen.gamma:g}, {chosen.cold:g} more for an item never seen; "
            f"transitions {chosen.transition:g}"
        )
    return network, history


def choose_weights(
    network: DualViewNetwork,
    files: list[str],
    schema: Schema,
    tail: np.ndarray,
    tolerance: float,
    exclude_history: bool = False,
) -> Weights:
    """validation.choose_match on the Parquet files of validation rows; tail: bool [V]."""
    valid = data_loader(files, schema, ranked_users(network.rows), False, network.gamma.device)
    try:
        return choose_match(network, valid, torch.from_numpy(tail), tolerance, exclude_history)
    finally:
        valid.dataset.stop()


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def _batch_size(files: list[str]) -> int:
    """Few large steps teach a small log nothing (measured on 406 users: NDCG@10 .39 after 32 steps, .97 after 200)."""
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    return min(256, max(16, rows // 64))


def validation_sample(prepared: Path, work: Path, train: TrainConfig) -> list[str]:
    """Files of the validation rows that are ranked after each epoch: the whole split, or every n-th row of it, which is
    written into `work`.
    """
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
