"""The served step `rank` on the device: requests of one user and of 64, at 100 thousand and a million items.

What Triton would add (transport, batching) is not in it: the machine of the kit has no tritonserver.
"""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.common import CUDA, DEVICE, LENGTH, histories, model, wait
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.scoring.checkpoint import save_model
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import NO_LIST, Rank


def run(record, small: bool) -> None:
    for items in (500,) if small else (100_000, 1_000_000):
        record.part(f"{items} items", lambda items=items: served(items, 2 if small else 200))


def served(items: int, calls: int) -> dict:
    """Latencies of one model, every item scored; loaded as a server loads it."""
    memory = Path("/dev/shm")
    room = memory.is_dir() and shutil.disk_usage(memory).free > 8e9
    with tempfile.TemporaryDirectory(dir=memory if room else None) as folder:
        _save(items, Path(folder))
        start = time.perf_counter()
        rank = Rank(Path(folder), Limits(), DEVICE.type)
        wait()
        loading = round(time.perf_counter() - start, 2)
    found: dict = {"load_seconds": loading, "exact": latencies(rank, items, calls)}
    if CUDA:
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def latencies(rank: Rank, items: int, calls: int) -> dict:
    """p50 and p99 of one user a request, and users a second in requests of 64."""
    codes = histories(512, items)[:, :LENGTH]
    ones = [request(rank, codes[row : row + 1]) for row in range(len(codes))]
    many = [request(rank, codes[start : start + 64]) for start in range(0, len(codes), 64)]
    for one in ones[: calls // 4 + 2]:
        rank([one])
    seconds = [_timed(rank, ones[call % len(ones)]) for call in range(calls)]
    for batch in many[:2]:
        rank([batch])
    batches = [_timed(rank, many[call % len(many)]) for call in range(max(calls // 10, 2))]
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    per_batch = float(np.median(batches))
    return {
        "p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "calls": calls,
        "batch64_ms": round(per_batch * 1e3, 2), "users_per_second": round(64 / per_batch),
    }  # fmt: skip


def _timed(rank: Rank, one: dict) -> float:
    start = time.perf_counter()
    (answer,) = rank([one])
    seconds = time.perf_counter() - start  # the answer is on the host: the device has finished
    if isinstance(answer, Exception):
        raise answer
    return seconds


def request(rank: Rank, codes: np.ndarray, k: int = 10) -> dict:
    """What step `encode` hands over."""
    column = (len(codes), 1)
    return {
        "CODES": codes, "K": np.full(column, k, np.int32), "BLOCK": np.full(column, PAD),
        "ALLOW_CODES": np.full(column, NO_LIST), "BUNDLE": np.full(column, rank.tag, np.int64),
    }  # fmt: skip


def _save(items: int, folder: Path) -> None:
    made, _ = model(items)
    counts = np.maximum(items // np.arange(1, items + 1), 1)
    vocabulary = Vocabulary([f"B{code:09d}" for code in range(FIRST_ITEM, items + FIRST_ITEM)], counts, counts)
    vocabulary.save(folder / VOCABULARY)
    save_model(made, folder, vocabulary.hash)
    seal(folder, "train", "gpu", {})
