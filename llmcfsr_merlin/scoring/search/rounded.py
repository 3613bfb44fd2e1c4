"""Vectors in one byte a number, with upper bounds of inner products that hold for every vector.

Vectors v and queries q are turned to coordinates in which both vary alike, Tv and T^-T q: inner products stay, and the
leading coordinates hold as much of them as any can (balanced coordinates, Moore 1981, "Principal component analysis in
linear systems"; the vectors' principal axes would ignore where queries lie). With y = T(v - c) around the centre c,
z = T^-T q, and y rounded to s n, whole numbers n of -127 to 127 by a scale s for each coordinate:

    <q, v> - <q, c> = <z, y> <= <z, s n> over the leading coordinates, from `head`, of every vector
                              + |z s| max |y / s - n| of these: what rounding can change, by Cauchy-Schwarz
                              + |z| |y| of the others: the norms are the last column of `head`, rounded up
                          or <= <z, s n> + |z s| max |y / s - n| of all: with `rest`, of the vectors that matter

The query is rounded too, to whole coarse steps, and what is left of it to fine ones; what is left of that adds its norm
times the largest |n|. A large `head` is read at the coarse steps alone. Sums of whole numbers are exact.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.search.products import LEVELS, products

WIDTH = 128  # bytes of a vector that every query reads at most
ROOM = 100_000_000  # bytes of all vectors that every query reads at most
_FINE = 1 << 24  # bytes of `head` up to which it is read at both steps
_DENSE = 4  # a row that is picked costs as much as so many in order
_SLACK = 1e-6  # of float32 sums, relative to the product of norms
_CHUNK, _SAMPLE = 1 << 14, 100_000


class Query(NamedTuple):
    """level: <q, c>. head, rest: int8 [2, D], in coarse and in fine steps. spare: what a bound from the head in coarse
    steps, from the head in both, and from all adds."""

    level: float
    head: Tensor
    rest: Tensor
    steps: tuple[float, float]
    spare: tuple[float, float, float]


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

    @property
    def _passes(self) -> int:
        return 2 if self.head.nbytes <= _FINE else 1

    def query(self, query: Tensor) -> Query:
        """query: float [D]."""
        query, leading = query.double(), self.leading
        norm_step, head_error, error, head_norm, norm, longest = self.limits.tolist()
        turned = self.turn @ query if len(self.turn) else query
        scaled = turned * self.scale
        tail = turned[leading:].norm() * norm_step
        unused = scaled.new_zeros(self.head.shape[1] - leading - 1)
        both = torch.cat([scaled[:leading], tail[None], unused, scaled[leading:]])
        coarse = max(float(both.abs().max()) / LEVELS, 1e-30)
        fine = coarse / (2 * LEVELS)
        whole = (both / coarse).round()
        left = both - coarse * whole
        finer = (left / fine).round()
        least = left - fine * finer
        steps, width = torch.stack([whole, finer]).to(torch.int8), self.head.shape[1]
        of_head = float(scaled[:leading].norm()) * head_error
        slack = _SLACK * longest * float(query.norm() + turned.norm())
        spare = (
            float(left[:width].norm()) * head_norm + of_head + slack,
            float(least[:width].norm()) * head_norm + of_head + slack,
            float(least.norm()) * norm + float(scaled.norm()) * error + slack,
        )
        return Query(float(query @ self.center), steps[:, :width], steps[:, width:], (coarse, fine), spare)

    def add_upper(self, query: Query, total: Tensor) -> None:
        """Add to float32 [V] at least the inner product of each vector."""
        passes = self._passes
        for found, step in zip(products(query.head[:passes], self.head), query.steps):
            total.add_(found, alpha=step)
        total.add_(query.level + query.spare[passes - 1])

    def excess(self, query: Query, items: Tensor) -> Tensor:
        """By how much `add_upper` adds too much for items int64 [C], as far as all coordinates tell: float32 [C]."""
        leading, passes = self.leading, self._passes
        norms = self.head[:, leading].index_select(0, items).float()
        over = torch.full_like(norms, query.spare[passes - 1] - query.spare[2])
        for row, found in enumerate(_of_items(query.rest, self.rest, items)):
            over.sub_(found, alpha=query.steps[row])
            if row < passes:
                over.add_(norms, alpha=query.steps[row] * int(query.head[row, leading]))
        if passes == 1:  # the head has not been read at the fine steps yet
            finer = query.head[1:].clone()
            finer[:, leading] = 0
            over.sub_(_of_items(finer, self.head, items)[0], alpha=query.steps[1])
        return over

    def near(self, queries: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Without a head: inner products of items int64 [C] and queries float [L, D], float32 [L, C], and how far off
        they may be, float32 [L, 1]."""
        queries = queries.double()
        scaled = queries * self.scale
        step = (scaled.abs().amax(1, keepdim=True) / LEVELS).clamp_min(1e-30)
        whole = (scaled / step).round()
        asked = whole.to(torch.int8)
        found = _of_items(asked, self.rest, items)
        _, _, error, _, norm, longest = self.limits.tolist()
        off = (scaled - step * whole).norm(dim=1) * norm + scaled.norm(dim=1) * error
        off += _SLACK * queries.norm(dim=1) * (longest + float(self.center.norm()))
        return found * step.float() + (queries @ self.center).float()[:, None], off.float()[:, None]


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


def _of_items(queries: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Products [M, C] of int8 [M, D] with the rows of items int64 [C]. Of many, all rows are read: that is faster."""
    if len(items) * _DENSE > len(rows):
        return torch.cat([products(queries, part) for part in rows.split(_CHUNK)], 1).index_select(1, items)
    return torch.cat([products(queries, rows.index_select(0, some)) for some in items.split(_CHUNK)], 1)


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
