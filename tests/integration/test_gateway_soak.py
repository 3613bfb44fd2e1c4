"""`make soak`: the gateway under mixed load for minutes; flat memory, nothing failed, right answers at the end.

LLMCFSR_SOAK: seconds (600). LLMCFSR_SECURITY_OUT: a file for one JSON line of figures.
"""

import collections
import os
import random
import threading
import time

import numpy as np
import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.repository import export
from tests.gateway_process import Served
from tests.load import meanwhile, note
from tests.served import IDS, write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


@pytest.mark.timeout(7200)
def test_the_gateways_memory_stays_flat(tmp_path):
    seconds = float(os.environ.get("LLMCFSR_SOAK", 600))
    trained = write_model(tmp_path / "train")
    export(trained, tmp_path / "repo", ServeConfig(max_top_k=50))
    served = Served(tmp_path / "repo", tmp_path / "stderr", "--set", "gateway.cache=500")
    found = collections.Counter()
    pool = [*IDS, "zzz", "é", "x" * 100]

    def ask(stop: threading.Event, seed: int) -> None:
        draw = random.Random(seed)
        while not stop.is_set():
            users = [
                {"history": draw.choices(pool, k=draw.randrange(40)), "k": draw.randint(1, 50),
                 "explain": draw.random() < 0.1}
                for _ in range(draw.randint(1, 8))
            ]  # fmt: skip
            wrong = draw.random() < 0.1  # a tenth of the requests is refused
            status, _, answer = served.recommend({"users": users} if not wrong else {"users": users, "colour": 1})
            right = status == 422 if wrong else status == 200 and not any(one["degraded"] for one in answer["answers"])
            found["refused" if wrong and right else "answered" if right else f"{status}: {answer}"[:150]] += 1

    gateway, curve = served.children()["gateway"], []
    with meanwhile(ask, *((seed,) for seed in range(4))):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(seconds / 60)
            curve.append(round(gateway.memory_info().rss / 1e6, 2))
    answer = served.recommend({"history": ["B001", "B002"], "k": 9})[2]
    wanted = Recommender.load(trained).answer([["B001", "B002"]], 9).items[0].tolist()
    assert [item["id"] for item in answer["items"]] == wanted
    assert served.stop() == 0
    quarter = len(curve) // 4
    growth = float(np.median(curve[-quarter:]) - np.median(curve[quarter : 2 * quarter]))
    note("gateway soak", seconds=seconds, found=dict(found), growth_mb=round(growth, 2), memory_mb=curve)
    assert set(found) == {"answered", "refused"}, found
    assert growth < max(0.02 * np.median(curve), 5), curve
