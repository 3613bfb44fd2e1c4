"""Inner products of numbers in one byte each with queries in float32, compiled by Numba.

torch has products of bytes with bytes alone, and without VNNI they take ten times as long as this. Importing this
module compiles it, if nobody has yet: it is imported where it is used.
"""

import numpy as np

from llmcfsr_merlin.runtime.machine_code import loop

_FLOATS = {"reassoc", "contract"}  # sums in any order: what they are off by is in rounded.py


@loop("void(int8[:, ::1], float32[:, ::1], float32[:, ::1])", fastmath=_FLOATS)
def add_products(rows: np.ndarray, queries: np.ndarray, total: np.ndarray) -> None:
    """Add the products of rows int8 [V, D] and queries float32 [B, D] to total float32 [B, V]."""
    fours = len(rows) // 4 * 4
    for number in range(len(queries)):
        query = queries[number]
        for item in range(0, fours, 4):  # four at once: a number of the query is read once, and the sums overlap
            first = second = third = fourth = np.float32(0)
            for place in range(len(query)):
                factor = query[place]
                first += np.float32(rows[item, place]) * factor
                second += np.float32(rows[item + 1, place]) * factor
                third += np.float32(rows[item + 2, place]) * factor
                fourth += np.float32(rows[item + 3, place]) * factor
            total[number, item] += first
            total[number, item + 1] += second
            total[number, item + 2] += third
            total[number, item + 3] += fourth
        for item in range(fours, len(rows)):
            row, product = rows[item], np.float32(0)
            for place in range(len(query)):
                product += np.float32(row[place]) * query[place]
            total[number, item] += product


@loop("float32[:, ::1](int8[:, ::1], int64[::1], float32[:, ::1])", fastmath=_FLOATS)
def products_of(rows: np.ndarray, items: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The products of rows[items], items int64 [C], and queries float32 [B, D]: float32 [B, C]."""
    found = np.empty((len(queries), len(items)), np.float32)
    for place in range(len(items)):
        row = rows[items[place]]
        for number in range(len(queries)):
            query, product = queries[number], np.float32(0)
            for step in range(len(query)):
                product += np.float32(row[step]) * query[step]
            found[number, place] = product
    return found


@loop("float64(float64[::1], float64[:, ::1], float64[::1], float64[::1], float64[::1])", fastmath=_FLOATS)
def turn_query(query: np.ndarray, turn: np.ndarray, scale: np.ndarray, turned: np.ndarray, scaled: np.ndarray) -> float:
    """Write turn [D, D], if there is one, times query [D] to turned [D], and that times scale [D] to scaled [D].

    Returns the norm of query plus that of turned.
    """
    before, after = 0.0, 0.0
    for row in range(len(query)):
        total = query[row]
        if len(turn):
            total = 0.0
            for place in range(len(query)):
                total += turn[row, place] * query[place]
        before += query[row] * query[row]
        after += total * total
        turned[row], scaled[row] = total, total * scale[row]
    return np.sqrt(before) + np.sqrt(after)
