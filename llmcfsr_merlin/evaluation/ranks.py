"""Ranks of all users for any scorer, in batches: memory holds one batch of scores and a few numbers per user.

>>> write_cases(run / "prepare", cases, n_items=len(vocabulary))  # doctest: +SKIP
>>> result = rank_users(ranker.by_history(KEPT), cases, train_counts=counts, max_length=50)  # doctest: +SKIP
>>> write_ranks(out / RANKS, [("llm_cfsr", 42, result.ranks)])  # doctest: +SKIP
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, HISTORY_RULES, KEPT, MASKED, PAD, USER
from llmcfsr_merlin.evaluation.cases import Cases, read_cases
from llmcfsr_merlin.evaluation.lists import ItemFacts, ListSums
from llmcfsr_merlin.evaluation.metrics import check_scores, counts, place, rank_of_target
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.scoring.ranker import select_top_k

# Histories int64 [B, L] -> scores float32 [B, V]; or history rule -> scores, if the rules have weights of their own.
# A rule that is not among them is ranked by the scores of the other.
ScoreFunction = Callable[[Tensor], Tensor | Mapping[str, Tensor]]

TARGET = "target"  # int64, encoded id of the held-out item
HISTORY_LENGTH = "history_length"  # int64, untruncated
LAST = "last"  # int64, encoded id of the item before it
REPEAT = "repeat"  # bool, whether the target is in the untruncated history
PROTOCOLS = ("full", "sampled")
# (protocol, history rule) -> int64 column, 1-based. Sampled candidates are no items of the history, so that there the
# rules differ by their score weights alone.
RANK = {(protocol, rule): f"rank_{protocol}_{rule}" for protocol in PROTOCOLS for rule in HISTORY_RULES}
RECIPE, SEED = "recipe", "seed"
SCORES_HELD = 1 << 26  # users times items


@dataclass(frozen=True)
class Ranking:
    """ranks: one row per user (USER, TARGET, LAST, HISTORY_LENGTH and one RANK column per protocol and history rule).

    catalogue: history rule -> the measures of the full-catalogue lists (lists.py); empty without the full protocol.
    weights: history rule -> the rule that the score weights were chosen for.
    """

    ranks: pd.DataFrame
    catalogue: dict[str, dict[str, float]]
    weights: dict[str, str]


@torch.inference_mode()
def rank_users(
    scorer: ScoreFunction,
    cases: Path,
    *,
    train_counts: np.ndarray,
    max_length: int,
    protocols: Sequence[str] = PROTOCOLS,
    ks: Sequence[int] = (5, 10, 20),
    batch_size: int = 256,
    name: str = "evaluate",
    facts: ItemFacts | None = None,
    shuffle: int | None = None,
) -> Ranking:
    """Rank the target of every case under both history rules; each user is scored once.

    full: among all real items; masked leaves the items of the untruncated history out, so that a target that is a
    repeat comes last, as it would not be recommended; kept does not. sampled: among the stored negatives.
    train_counts: int64 [V], fixes V.
    batch_size: users at once, at most; fewer in a catalogue so large that their scores would be more than SCORES_HELD.
    facts: of the items, for the measures of the lists (ItemFacts(train_counts) without them). shuffle: a seed; the
    histories are scored in a random order. Raises ValueError if the scorer returns another shape than [B, V] or NaN.
    """
    n_items = len(train_counts)
    facts = facts or ItemFacts(train_counts)
    lists = {rule: ListSums(ks, facts) for rule in HISTORY_RULES}
    weights = {rule: rule for rule in HISTORY_RULES}
    found: list[dict[str, np.ndarray]] = []
    total = pq.read_metadata(cases).num_rows
    batch_size = max(1, min(batch_size, SCORES_HELD // n_items))
    with Progress(total, name, "users") as progress:
        for batch in read_cases(cases, max_length, batch_size, shuffle):
            scores = scorer(torch.from_numpy(batch.histories))
            if isinstance(scores, Tensor):
                scores = dict.fromkeys(HISTORY_RULES, scores)
            weights = {rule: rule if rule in scores else next(iter(scores)) for rule in HISTORY_RULES}
            part = {
                USER: batch.users, TARGET: batch.targets, LAST: batch.last, HISTORY_LENGTH: batch.lengths,
                REPEAT: batch.repeats,
            }  # fmt: skip
            sampled: dict[int, np.ndarray] = {}
            full: dict[int, _Full] = {}
            for rule in HISTORY_RULES:
                of_rule = scores[weights[rule]]
                if of_rule.shape != (len(batch.users), n_items):
                    raise ValueError(
                        f"expected scores [{len(batch.users)}, {n_items}], found {list(of_rule.shape)} ({name})"
                    )
                if "sampled" in protocols:
                    if id(of_rule) not in sampled:
                        sampled[id(of_rule)] = _sampled_ranks(of_rule, batch)
                    part[RANK["sampled", rule]] = sampled[id(of_rule)]
                if "full" in protocols:
                    if id(of_rule) not in full:
                        full[id(of_rule)] = _Full(of_rule, batch)
                    part[RANK["full", rule]], top = full[id(of_rule)].ranked(max(ks), rule == MASKED)
                    lists[rule].add(top, batch.targets, batch.histories)
            found.append(part)
            progress.update(len(batch.users))
    frame = pd.DataFrame({column: np.concatenate([part[column] for part in found]) for column in found[0]})
    spread = {rule: sums.values() for rule, sums in lists.items()} if "full" in protocols else {}
    return Ranking(frame, spread, weights)


def write_ranks(path: Path, runs: Iterable[tuple[str, int, pd.DataFrame]]) -> None:
    """Write RANKS: the frames of (recipe, seed, frame) below each other, with RECIPE and SEED columns in front."""
    writer = None
    try:
        for recipe, seed, frame in runs:
            frame = frame.copy()
            frame.insert(0, RECIPE, recipe)
            frame.insert(1, SEED, np.int64(seed))
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, table.schema.remove_metadata())
            writer.write_table(table.replace_schema_metadata(None))
    finally:
        if writer is not None:
            writer.close()


def read_ranks(path: Path, recipe: str | None = None, history: str = KEPT) -> pd.DataFrame:
    """Ranks of one recipe, or of all. history: the one rule that a file of an earlier version was made by."""
    ranks = pq.read_table(path, filters=None if recipe is None else [(RECIPE, "=", recipe)]).to_pandas()
    return ranks.rename(columns={f"rank_{protocol}": RANK[protocol, history] for protocol in PROTOCOLS})


class _Full:
    """Full ranking of a batch by one tensor of scores, whose items are compared with the target once for both rules."""

    def __init__(self, scores: Tensor, batch: Cases):
        self.real, device = scores[:, FIRST_ITEM:], scores.device
        self.tie = torch.from_numpy(batch.tie).to(device)
        self.own = self.real.gather(1, torch.from_numpy(batch.targets).to(device)[:, None] - FIRST_ITEM)
        self.above, self.tied = counts(self.real, self.own)
        owner = np.repeat(np.arange(len(batch.users)), [len(seen) for seen in batch.seen])
        width = self.real.shape[1]
        seen = np.unique(owner * width + np.concatenate(batch.seen) - FIRST_ITEM)  # each item of a history once
        self.row, self.column = (torch.from_numpy(part).to(device) for part in np.divmod(seen, width))
        self.repeats = torch.from_numpy(batch.repeats).to(device)

    def ranked(self, k: int, exclude_history: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ranks int64 [B] among all real items, and the encoded ids of the k that would be shown."""
        above, tied = self.above, self.tied
        if exclude_history:  # in place and back again: a copy of the scores is slower than what is left to do
            before, own = self.real[self.row, self.column], self.own[self.row, 0]
            above = above.index_add(0, self.row, -(before > own).long())
            tied = tied.index_add(0, self.row, -(before == own).long())
            self.real[self.row, self.column] = -torch.inf
        codes, best = select_top_k(self.real, min(k, self.real.shape[1]))
        if exclude_history:
            self.real[self.row, self.column] = before
        check_scores(best[:, :1])  # NaN is the largest of a row
        shown = np.where(best.cpu().numpy() == -np.inf, 0, codes.cpu().numpy() + FIRST_ITEM)
        ranks = place(above, tied, self.tie)
        if exclude_history:
            ranks = ranks.masked_fill(self.repeats, max(self.real.shape[1], k + 1))  # not found, however few items
        return ranks.cpu().numpy(), shown


def _sampled_ranks(scores: Tensor, batch: Cases) -> np.ndarray:
    candidates = torch.from_numpy(np.column_stack([batch.targets, batch.candidates])).to(scores.device)
    first = torch.zeros(len(candidates), dtype=torch.long, device=scores.device)
    found = scores.gather(1, candidates).masked_fill(candidates == PAD, -torch.inf)
    ranks = rank_of_target(found, first, torch.from_numpy(batch.tie).to(scores.device))
    return ranks.cpu().numpy()
