"""Positive pairs for contrastive fine-tuning, redrawn every epoch, reproducible by seed."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from llmcfsr_merlin.text.prompts import Attributes, Prompter, augment


@dataclass(frozen=True)
class PairBatch:
    """B pairs of texts.

    left_mask[i, j]: right text j is not a negative of left text i; right_mask[j, i]: left text i is not a negative of
    right text j. Both (B, B) bool, false on the diagonal.
    """

    left: list[str]
    right: list[str]
    left_mask: np.ndarray
    right_mask: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """Items next to each item in the training sequences: those of item i are items[starts[i]:starts[i + 1]]."""

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], count: int) -> "Neighbours":
        """From training sequences of item positions 0 .. count - 1; negative positions (not tuned on) are skipped.

        The caller removes the validation and test items: pairs with them would leak into the vectors.
        """
        first = [np.asarray(sequence[:-1]) for sequence in sequences if len(sequence) > 1]
        second = [np.asarray(sequence[1:]) for sequence in sequences if len(sequence) > 1]
        if not first:
            return cls(np.zeros(count + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
        a, b = np.concatenate(first), np.concatenate(second)
        known = (a >= 0) & (b >= 0) & (a != b)
        a, b = np.concatenate([a[known], b[known]]), np.concatenate([b[known], a[known]])
        order = np.argsort(a, kind="stable")
        return cls(np.concatenate([[0], np.cumsum(np.bincount(a, minlength=count))]).astype(np.int64), b[order])

    def draw(self, item: int, rng: random.Random) -> int | None:
        """One neighbour, sampled by its co-occurrence count with the item; None if there is none."""
        start, stop = int(self.starts[item]), int(self.starts[item + 1])
        return int(self.items[rng.randrange(start, stop)]) if stop > start else None


class PairSampler:
    """Batches of pairs over a list of items.

    A pair is two augmented copies of one item (LLMEmb, arXiv 2409.19925) or, for a share of the pairs, copies of two
    items that follow each other in training sequences.
    """

    def __init__(
        self,
        items: Sequence[Attributes],
        prompter: Prompter,
        *,
        batch_size: int,
        drop: float,
        seed: int,
        neighbours: Neighbours | None = None,
        cooccurrence: float = 0.0,
    ):
        self.items = items
        self.prompter = prompter
        self.batch_size = min(batch_size, len(items))
        self.drop = drop
        self.seed = seed
        self.neighbours = neighbours
        self.cooccurrence = cooccurrence if neighbours else 0.0

    def __len__(self) -> int:
        """Batches per epoch; an incomplete last batch is dropped until the next epoch."""
        return max(1, len(self.items) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """Batches start, start + 1, ... of an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        for step in range(start, len(self)):
            yield self.batch(order[step * self.batch_size : (step + 1) * self.batch_size], epoch)

    def batch(self, chosen: Iterable[int], epoch: int) -> PairBatch:
        """Pairs whose first copies are of the items `chosen`."""
        left, right, partners = [], [], []
        for item in map(int, chosen):
            rng = random.Random(f"{self.seed}/{epoch}/{item}")
            partner = None
            if self.neighbours is not None and self.cooccurrence and rng.random() < self.cooccurrence:
                partner = self.neighbours.draw(item, rng)
            partners.append(item if partner is None else partner)
            left.append(augment(self.items[item], self.drop, rng))
            right.append(augment(self.items[partners[-1]], self.drop, rng))
        return PairBatch(
            [self.prompter.render(copy) for copy in left],
            [self.prompter.render(copy) for copy in right],
            _indistinct(left, [self.items[item] for item in partners]),
            _indistinct(right, [self.items[int(item)] for item in chosen]),
        )


def _indistinct(copies: Sequence[Attributes], items: Sequence[Attributes]) -> np.ndarray:
    """(B, B) bool: item j has all attributes of copy i, so copy i cannot distinguish it from its own item.

    Calling such an item a negative would push equal texts apart ("brand: OPI" against every OPI polish).
    """
    number: dict[tuple[str, str], int] = {}
    for attributes in (*copies, *items):
        for entry in attributes:
            number.setdefault(entry, len(number))
    shared = (_incidence(copies, number) @ _incidence(items, number).T).toarray()
    mask = shared == np.array([len(set(copy)) for copy in copies])[:, None]
    np.fill_diagonal(mask, False)
    return mask


def _incidence(rows: Sequence[Attributes], number: dict[tuple[str, str], int]) -> csr_matrix:
    """(rows, attributes) with 1 where a row has an attribute."""
    columns = [[number[entry] for entry in set(row)] for row in rows]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
    flat = np.array([entry for row in columns for entry in row], dtype=np.int64)
    return csr_matrix((np.ones(len(flat), dtype=np.int32), flat, starts), shape=(len(rows), len(number)))
