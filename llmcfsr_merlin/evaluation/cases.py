"""Evaluation cases: each user's sequence with the stored negatives of the sampled protocol.

The papers rank one positive against 100 negatives drawn uniformly from the catalogue without replacement, outside all
of the user's interactions (LLM-ESR, arXiv 2405.20646, whose code redraws in every loader worker). Here they are
drawn once and stored, so that all models, seeds and runs are ranked against the same items.

A user's draw depends on (seed, user id) only: neither the order of users, nor the partitions, nor the batch size
changes it. The catalogue is read from the vocabulary: another vocabulary gives another draw.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, PAD, SEQUENCES, USER
from llmcfsr_merlin.dataset.user_histories import lists_of, read_histories
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.progress import Progress

CANDIDATES = "candidates"  # column: list of int64, the negatives' encoded ids
TIE = "tie"  # column: float64 in [0, 1), the user's place in ties (metrics.rank_of_target)

_BLOCK = 4096  # users read, drawn and written at a time


@dataclass(frozen=True)
class Cases:
    """A batch of users, ready to be ranked.

    users: object [B]. histories: int64 [B, L] right-padded, at most `max_length` last items. targets: int64 [B]. last:
    int64 [B], the item before the target. seen: for each user encoded ids int64 of the whole history. lengths: int64
    [B], of these. candidates: int64 [B, n], PAD if a user has fewer than n. tie: float64 [B].
    """

    users: np.ndarray
    histories: np.ndarray
    targets: np.ndarray
    last: np.ndarray
    seen: list[np.ndarray]
    lengths: np.ndarray
    candidates: np.ndarray
    tie: np.ndarray

    @property
    def repeats(self) -> np.ndarray:
        """Whether the target is in the history, bool [B]."""
        return np.array([bool((seen == target).any()) for seen, target in zip(self.seen, self.targets)])


def draw_negatives(
    user: str, interactions: np.ndarray, n_items: int, count: int, seed: int
) -> tuple[np.ndarray, float]:
    """Negatives of one user and the user's tie-breaking number.

    interactions: int64 encoded ids of everything the user touched. n_items: V, reserved rows included.
    Returns `count` distinct ids in [FIRST_ITEM, n_items) outside `interactions` (all of them if there are fewer), and
    a float in [0, 1).
    """
    digest = hashlib.blake2b(str(user).encode(), digest_size=8, key=str(seed).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    tie = generator.random()
    known = np.unique(interactions)
    free = n_items - FIRST_ITEM - int((known >= FIRST_ITEM).sum())
    count = min(count, free)
    if free < 4 * count:  # rejection sampling would retry too often
        pool = np.setdiff1d(np.arange(FIRST_ITEM, n_items), known, assume_unique=True)
        return generator.choice(pool, count, replace=False), tie
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        more = generator.integers(FIRST_ITEM, n_items, 2 * count)
        drawn = np.concatenate([drawn, more[~np.isin(more, known)]])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]  # distinct, in the order drawn
    return drawn[:count], tie


def write_cases(
    prepare: Path,
    path: Path,
    n_items: int,
    *,
    negatives: int = 100,
    seed: int = 42,
    split: Literal["test", "valid"] = "test",
) -> int:
    """Draw and store the cases of all users in one Parquet file; returns their number.

    prepare: the prepare stage's directory; its sequences are read in blocks. n_items: V. negatives: 0 stores none (full
    protocol only). split: `test` ranks the last item; `valid` drops it unread and ranks the one before. In a
    temporal split they rank what prepare.targets says, each after all that is before it (Histories.cases).
    """
    schema = pa.schema(
        [
            (USER, pa.string()),
            (ITEM, pa.list_(pa.int64())),
            (CANDIDATES, pa.list_(pa.int64())),
            (TIE, pa.float64()),
        ]
    )
    written = 0
    with pq.ParquetWriter(path, schema) as writer, Progress(None, "candidates", "users") as progress:
        for block in read_histories(Path(prepare) / SEQUENCES, _BLOCK):
            users, sequences, drawn = [], [], []
            for position, target in block.cases(split):
                user, whole = str(block.users[position]), block.sequences[position]
                known = whole[: block.valid[position]] if split == "valid" else whole
                _check_sequence(user, known, n_items)
                key = f"{user} {target}" if block.targets == "all" else user  # one draw per row of a user
                drawn.append(draw_negatives(key, known, n_items, negatives, seed))
                users.append(user)
                sequences.append(whole[: target + 1])
            if not users:  # a temporal split may have no case among these
                continue
            table = [users, sequences, [one for one, _ in drawn], [tie for _, tie in drawn]]
            writer.write_table(pa.table([pa.array(column, field.type) for column, field in zip(table, schema)], schema))
            written += len(users)
            progress.update(len(users))
    if not written:
        raise InputError(
            f"expected sequences in {Path(prepare) / SEQUENCES}, found none: run `llmcfsr prepare --force`"
        )
    return written


def read_cases(path: Path, max_length: int, batch_size: int, shuffle: int | None = None) -> Iterator[Cases]:
    """Stream the stored cases; only one batch is in memory. max_length: longest history handed to a scorer. shuffle: a
    seed; what of a history is handed over stands in a random order, drawn for each case."""
    generator = np.random.default_rng(shuffle)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size):
            sequences = lists_of(batch.column(ITEM))
            histories = [sequence[:-1][-max_length:] for sequence in sequences]
            if shuffle is not None:
                histories = [generator.permutation(history) for history in histories]
            targets = np.array([sequence[-1] for sequence in sequences])
            yield Cases(
                users=batch.column(USER).to_numpy(zero_copy_only=False),
                histories=_padded(histories),
                targets=targets,
                last=np.array([sequence[-2] for sequence in sequences]),
                seen=[sequence[:-1] for sequence in sequences],
                lengths=np.array([len(sequence) - 1 for sequence in sequences]),
                candidates=_padded(lists_of(batch.column(CANDIDATES))),
                tie=np.array(batch.column(TIE)),
            )


def said_negatives(path: Path) -> str:
    """How many negatives the users of the stored cases have: "100", or "0 to 9" if the catalogue is small."""
    least, most = [], []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[CANDIDATES]):
            bounds = pc.min_max(pc.list_value_length(batch.column(0))).as_py()
            least.append(bounds["min"])
            most.append(bounds["max"])
    low, high = min(least, default=0), max(most, default=0)
    return str(high) if low == high else f"{low} to {high}"


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return padded


def _check_sequence(user: str, sequence: np.ndarray, n_items: int) -> None:
    if len(sequence) < 2:
        raise InputError(f"expected a history and a target for user {user}, found {len(sequence)} item(s)")
    if not FIRST_ITEM <= sequence.min() <= sequence.max() < n_items:
        raise InputError(
            f"expected encoded item ids {FIRST_ITEM}..{n_items - 1} in the sequence of user {user}, "
            f"found {sequence.min()}..{sequence.max()}: sequences and vocabulary differ, run `llmcfsr prepare --force`"
        )
