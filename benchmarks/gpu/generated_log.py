"""A generated log of any size, as stage ingest would write it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# The part files of stage ingest.
PART, ROW_GROUP = 1 << 20, 1 << 18
ITEMS = 200_000


def generate(folder: Path, rows: int, seed: int = 0) -> None:
    """Zipf items (exponent 1), log-normal activity of rows / 10 users, times of a day's resolution, so with ties."""
    folder.mkdir(parents=True)
    users, items = max(rows // 10, 10), min(ITEMS, max(rows // 20, 10))
    random = np.random.default_rng(seed)
    user_ids, item_ids = _ids("A", random.permutation(users), 12), _ids("B", random.permutation(items), 9)
    by_user = np.cumsum(random.lognormal(0, 1, users))
    by_item = np.cumsum(1 / np.arange(1, items + 1))

    def write(part: int) -> None:
        own = np.random.default_rng([seed, part])
        first = part * PART
        size = min(PART, rows - first)
        user = np.searchsorted(by_user, own.random(size) * by_user[-1])
        item = np.searchsorted(by_item, own.random(size) * by_item[-1])
        table = pa.table({
            "user_id": user_ids.take(pa.array(user)), "item_id": item_ids.take(pa.array(item)),
            "timestamp": own.integers(11_000, 18_000, size) * 86_400, "subsecond": np.zeros(size),
            "row": np.arange(first, first + size), "rating": pa.nulls(size, pa.float32()),
        })  # fmt: skip
        pq.write_table(table, folder / f"part-{part:05d}.parquet", row_group_size=ROW_GROUP)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, range(-(-rows // PART))))


def _ids(letter: str, numbers: np.ndarray, digits: int) -> pa.Array:
    """letter and `digits` digits of each number, without a Python object for any."""
    text = np.empty((len(numbers), digits + 1), np.uint8)
    text[:, 0] = ord(letter)
    for place in range(digits):
        text[:, digits - place] = numbers // 10**place % 10 + ord("0")
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * (digits + 1)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))
