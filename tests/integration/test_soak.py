"""`make soak`: a server under mixed load for minutes; flat memory, no unexpected refusal, right answers at the end."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.repository import export
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from tests.load import meanwhile
from tests.served import IDS, write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


def memory_mb(pid: int) -> float:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return round(sum(process.memory_full_info().pss for process in family) / 1e6, 2)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("layout", os.environ.get("LLMCFSR_SOAK_LAYOUTS", "ensemble").split(","))
def test_memory_stays_flat(tmp_path, layout):
    """LLMCFSR_SOAK: seconds (600). LLMCFSR_SOAK_OUT: a JSON file for the curve."""
    seconds = float(os.environ.get("LLMCFSR_SOAK", 600))
    trained = write_model(tmp_path / "train")
    export(trained, tmp_path / "repo", ServeConfig(layout=layout, max_top_k=50))
    counts, failures = {"answered": 0, "refused": 0}, []
    pool = [*IDS, "zzz", "é", "x" * 1000]

    def ask(stop: threading.Event, seed: int, url: str) -> None:
        random = np.random.default_rng(seed)
        with Client(url) as client:
            while not stop.is_set():
                histories = [random.choice(pool, random.integers(0, 40)).tolist() for _ in range(random.integers(1, 9))]
                k = 51 if random.random() < 0.1 else int(random.integers(1, 51))  # a tenth of the requests is refused
                filters = {"allow": random.choice(IDS, 9).tolist()} if random.random() < 0.3 else {}
                try:
                    client.answer(histories, k, exclude_seen=bool(random.integers(2)), **filters)
                    counts["answered"] += 1
                except InputError as error:
                    counts["refused"] += 1
                    if k != 51 or "TOP_K" not in str(error):
                        failures.append(str(error))

    curve: list[tuple[float, float]] = []
    with Server(tmp_path / "repo", threads=1) as server:
        urls = [server.grpc_url, server.http_url]
        with meanwhile(ask, *((seed, urls[seed % 2]) for seed in range(4))):
            start = time.monotonic()
            while time.monotonic() - start < seconds:
                time.sleep(seconds / 60)
                curve.append((round(time.monotonic() - start, 1), memory_mb(server.pid)))
        passed = check_served(trained, server.grpc_url, [["B001", "zzz"], [], IDS], 20).passed
    memory = np.array([value for _, value in curve])
    quarter = len(memory) // 4
    growth = float(np.median(memory[-quarter:]) - np.median(memory[quarter : 2 * quarter]))
    if out := os.environ.get("LLMCFSR_SOAK_OUT"):
        result = {"layout": layout, "seconds": seconds, **counts, "growth_mb_second_to_last_quarter": round(growth, 2)}
        Path(out).write_text(json.dumps({**result, "memory_mb": curve}) + "\n")
    assert passed and not failures and counts["refused"] and counts["answered"] > seconds, (counts, failures[:3])
    assert growth < max(0.02 * np.median(memory), 5), curve
