"""Vectors in one byte a number, with upper bounds of inner products that hold for every vector.

Vectors v and queries q are turned to coordinates in which both vary alike, Tv and T^-T q: inner products stay, and the
leading coordinates hold as much of them as any can (balanced coordinates, Moore 1981, "Principal component analysis in
linear systems"; the vectors' principal axes would ignore where queries lie). With y = T(v - c) around the centre c,
z = T^-T q, and y rounded to s n, whole numbers n of -127 to 127 by a scale s for each coordinate:

    <q, v> - <q, c> = <z, y> <= <z, s n> over the leading coordinates, from `head`, of every vector
                              + |z s| max |y / s - n| of these: what rounding can change, by Cauchy-Schwarz
                              + |z| |y| of the others: the norms are the last column of `head`, rounded up
                          or <= <z, s n> + |z s| max |y / s - n| of all: with `rest`, of the vectors that matter

What float32 sums can be off by is added.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM

LEVELS = 127  # largest whole number
WIDTH = 128  # bytes of a vector that every query reads at most
ROOM = 100_000_000  # bytes of all vectors that every query reads at most
UNIT = 2.0**-24  # of float32: a sum of n products is off by n UNIT |q| |n| at most, in any order
_SLACK = 1e-6  # of the float32 scores that are bounded, relative to the product of norms
_CHUNK, _SAMPLE = 1 << 14, 100_000


class Query(NamedTuple):
    """level: <q, c>. head, rest: float32 [1, D], what their columns count. spare: what a bound from the head, and from
    all, adds."""

    level: float
    head: Tensor
    rest: Tensor
    spare: tuple[float, float]


class Queries(NamedTuple):
    """Of several queries without a head. level, off: float32 [L, 1], rest: float32 [L, D]."""

    level: Tensor
    rest: Tensor
    off: Tensor


class Rounded(NamedTuple):
    """head: int8 [V, H], leading coordinates and the norm of the others. rest: int8 [V, R], the others.

    center, scale: float64 [D]. turn: float64 [D, D], T^-T, or [0, 0]: none. limits: float64 [6], step of the norms,
    largest rounding error (in levels) of the head and of all, largest norm of whole numbers of the head and of all,
    largest |y|.
    """

    head: Tensor
    rest: Tensor
    center: Tensor
    turn: Tensor
    scale: Tensor
    limits: Tensor

    @property
    def leading(self) -> int:
        """Coordinates in `head`."""
        return len(self.scale) - self.rest.shape[1]

    def query(self, query: Tensor) -> Query:
        """query: float [D]."""
        from llmcfsr_merlin.scoring.search.byte_products import turn_query

        query, leading, width = query.double(), self.leading, self.head.shape[1]
        norm_step, head_error, error, head_norm, norm, longest = self.limits.tolist()
        turned, scaled = np.empty(len(query)), np.empty(len(query))
        norms = turn_query(query.numpy(), self.turn.numpy(), self.scale.numpy(), turned, scaled)
        both = np.zeros(width + len(scaled) - leading)
        both[:leading], both[width:] = scaled[:leading], scaled[leading:]
        both[leading] = _norm(turned[leading:]) * norm_step
        slack = _SLACK * longest * norms
        spare = (
            _norm(scaled[:leading]) * head_error + _sum_error(width) * _norm(both[:width]) * head_norm + slack,
            _norm(scaled) * error + _sum_error(len(both)) * _norm(both) * norm + slack,
        )
        asked = torch.from_numpy(both.astype(np.float32))[None]
        return Query(float(query @ self.center), asked[:, :width], asked[:, width:], spare)

    def add_upper(self, query: Query, total: Tensor) -> None:
        """Add to float32 [V] at least the inner product of each vector."""
        from llmcfsr_merlin.scoring.search.byte_products import add_products

        add_products(self.head.numpy(), query.head.numpy(), total.numpy()[None])
        total.add_(query.level + query.spare[0])

    def excess(self, query: Query, items: Tensor) -> Tensor:
        """By how much `add_upper` adds too much for items int64 [C], as far as all coordinates tell: float32 [C]."""
        from llmcfsr_merlin.scoring.search.byte_products import products_of

        norms = self.head[:, self.leading].index_select(0, items)
        over = norms * query.head[0, self.leading] + (query.spare[0] - query.spare[1])
        return over.sub_(torch.from_numpy(products_of(self.rest.numpy(), items.numpy(), query.rest.numpy()))[0])

    def queries(self, queries: Tensor) -> "Queries":
        """Without a head: queries float [L, D]."""
        queries = queries.double()
        scaled = queries * self.scale
        _, _, error, _, norm, longest = self.limits.tolist()
        off = scaled.norm(dim=1) * (error + _sum_error(scaled.shape[1]) * norm)
        off += _SLACK * queries.norm(dim=1) * (longest + float(self.center.norm()))
        return Queries((queries @ self.center).float()[:, None], scaled.float(), off.float()[:, None])

    def near(self, queries: "Queries", items: Tensor) -> Tensor:
        """Inner products of items int64 [C] and queries, off by Queries.off at most: float32 [L, C]."""
        from llmcfsr_merlin.scoring.search.byte_products import products_of

        found = products_of(self.rest.numpy(), items.numpy(), queries.rest.numpy())
        return torch.from_numpy(found).add_(queries.level)


def _sum_error(count: int) -> float:
    """What float32 sums of `count` products are off by, over both norms; the query is rounded, too."""
    return (count + 1) * UNIT


def _norm(numbers: np.ndarray) -> float:
    return math.sqrt(numbers @ numbers)


def round_vectors(rows: Callable[[slice], Tensor], count: int, queries: Tensor | None = None) -> Rounded:
    """rows: float [N, D] of a slice of `count` vectors, of which the first FIRST_ITEM are reserved: read as c.

    queries: float [M, D], such as will be asked; None: neither head nor turn, for queries that may be anything.
    """
    every = max((count - FIRST_ITEM) // _SAMPLE, 1)
    some = torch.cat([rows(own)[::every] for own in _slices(FIRST_ITEM, count)]).double()
    center, width = some.mean(0), some.shape[1]
    forth, back = (None, center.new_zeros(0, 0)) if queries is None else _balanced(some - center, queries.double())
    head = 0 if queries is None else min(WIDTH, max(ROOM // count // 16 * 16, 32), -(-(width + 1) // 16) * 16)
    leading = min(max(head - 1, 0), width)

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for own in _slices(0, count):
            block = rows(own).double() - center
            block[: max(FIRST_ITEM - own.start, 0)] = 0
            yield own, block if forth is None else block @ forth

    largest, most = center.new_zeros(width), center.new_zeros(2)
    for _, block in blocks():
        largest = torch.maximum(largest, block.abs().amax(0))
        most = torch.maximum(most, torch.stack([block[:, leading:].norm(dim=1).max(), block.norm(dim=1).max()]))
    scale, norm_step = (largest / LEVELS).clamp_min(1e-30), (most[0] / LEVELS).clamp_min(1e-30)
    first = torch.zeros(count, head, dtype=torch.int8)
    rest = torch.zeros(count, width - leading, dtype=torch.int8)
    limits = center.new_zeros(4)
    for own, block in blocks():
        exact = block / scale
        whole = exact.round().clamp(-LEVELS, LEVELS)
        if head:
            first[own, :leading] = whole[:, :leading].to(torch.int8)
            norms = block[:, leading:].norm(dim=1) / norm_step
            first[own, leading] = (norms * (1 - 1e-12)).ceil().to(torch.int8)
        rest[own] = whole[:, leading:].to(torch.int8)
        wrong, lead = exact - whole, first[own].double()
        of_row = wrong[:, :leading], wrong, lead, torch.cat([lead, whole[:, leading:]], 1)
        limits = torch.maximum(limits, torch.stack([part.norm(dim=1).max() for part in of_row]))
    return Rounded(first, rest, center, back, scale, torch.cat([norm_step[None], limits, most[1:]]))


def _slices(start: int, stop: int) -> list[slice]:
    return [slice(place, min(place + _CHUNK, stop)) for place in range(start, stop, _CHUNK)]


def _balanced(vectors: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """T' and T^-T of the balanced coordinates, float64 [D, D]: vectors @ T' and queries @ T^-T' have the same diagonal
    second moments, the largest first."""
    spread = [part.T @ part / len(part) for part in (vectors, queries)]
    width = vectors.shape[1]
    # Directions that do not occur are given a little, or T could not be turned back.
    of_vectors, of_queries = (
        torch.linalg.cholesky(part + (1e-6 * part.diagonal().mean() + 1e-30) * torch.eye(width, dtype=part.dtype))
        for part in spread
    )
    left, values, right = torch.linalg.svd(of_queries.T @ of_vectors)
    return of_queries @ left * values**-0.5, (values**-0.5)[:, None] * (right @ of_vectors.T)
