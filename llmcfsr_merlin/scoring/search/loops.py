"""Loops over a catalogue that Numba compiles: one pass over the items, or over a few of them, where torch makes ten.

Importing this module compiles it, if nobody has yet, which takes seconds: it is imported where it is used
(serve.engine=onnxruntime, for catalogues that have a table of cosines). Arrays are contiguous, histories are int64
[B, L] with any reserved ids as padding, and ids are not checked against the catalogue's size.
"""

import numpy as np

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.machine_code import loop

NONE = -128  # below every cosine of a table: the item is not compared


@loop("void(int8[:, ::1], int64[:, ::1], float32[::1], float32[:, ::1])")
def add_largest(table: np.ndarray, histories: np.ndarray, scale: np.ndarray, total: np.ndarray) -> None:
    """Add scale[v] times the largest of table[h, v] over a history's items h to total float32 [B, V].

    table: int8 [V, V], scale: float32 [V]. If all are NONE, nothing is added.
    """
    best = np.empty(table.shape[1], np.int8)
    for row in range(len(total)):
        best[:] = NONE
        for item in histories[row]:
            if item >= FIRST_ITEM:
                one = table[item]
                for place in range(len(best)):
                    best[place] = max(best[place], one[place])
        for place in range(len(best)):
            known = np.float32(0) if best[place] == NONE else np.float32(best[place])
            total[row, place] += scale[place] * known


@loop(
    "void(int32[:, ::1], float32[:, ::1], float32[::1], int64[:, ::1], boolean, float32, float32, int64[::1], "
    "int64[:, ::1], float32[:, ::1], boolean, float32[:, ::1])",
)
def add_sums(
    near: np.ndarray, values: np.ndarray, decay: np.ndarray, histories: np.ndarray, logarithm: bool, weight: float,
    lent_weight: float, borrowers: np.ndarray, lenders: np.ndarray, cosines: np.ndarray, score_history: bool,
    total: np.ndarray,
) -> None:  # fmt: skip
    """Add weight times the sums s of what a history's items give to others to total float32 [B, V].

    Item h gives decay[age] times values[h] float32 [V, n], which are not negative, to the items near[h] int32 [V, n];
    the last position that is not padding has age 0. logarithm: log(1 + 100 s) instead of s. borrowers int64 [N] get
    lent_weight times the largest of their lenders' [N, k] s times cosines [N, k]. score_history: whether the items of a
    history get anything.
    """  # fmt: skip
    sums, left_out = np.zeros(total.shape[1], np.float32), np.zeros(total.shape[1], np.bool_)
    touched = np.empty(total.shape[1], np.int64)
    for row in range(len(total)):
        history, length, count = histories[row], 0, 0
        for item in history:
            length += item != 0
        for position in range(len(history)):
            item = history[position]
            if item >= FIRST_ITEM:
                left_out[item], factor = not score_history, decay[max(length - 1 - position, 0)]
                for place in range(near.shape[1]):
                    other, value = near[item, place], factor * values[item, place]
                    if value > 0:
                        if sums[other] == 0:
                            touched[count] = other
                            count += 1
                        sums[other] += value
        for place in range(count):
            other = touched[place]
            if logarithm:
                sums[other] = np.log1p(np.float32(100) * sums[other])
            if not left_out[other]:
                total[row, other] += weight * sums[other]
        if count:
            for place in range(len(borrowers)):
                if not left_out[borrowers[place]]:
                    most = np.float32(0)
                    for lender in range(lenders.shape[1]):
                        most = max(most, sums[lenders[place, lender]] * cosines[place, lender])
                    total[row, borrowers[place]] += lent_weight * most
        for place in range(count):
            sums[touched[place]] = 0
        for item in history:
            left_out[item] = False


@loop("float32[:, ::1](float32[:, ::1], int64[:, ::1], int64[:, ::1], boolean)", fastmath={"reassoc"})
def largest_cosines(units: np.ndarray, histories: np.ndarray, items: np.ndarray, itself: bool) -> np.ndarray:
    """The largest inner product of each of items int64 [B, C] with any item of its history, 0 if there is none.

    units: float32 [V, D]. itself: whether an item is compared with itself, too. Returns float32 [B, C].
    """
    best = np.zeros(items.shape, np.float32)
    for row in range(len(items)):
        for column in range(items.shape[1]):
            other, found = units[items[row, column]], False
            for item in histories[row]:
                if item >= FIRST_ITEM and (itself or item != items[row, column]):
                    one, product = units[item], np.float32(0)
                    for place in range(len(one)):
                        product += one[place] * other[place]
                    if not found or product > best[row, column]:
                        best[row, column], found = product, True
    return best
