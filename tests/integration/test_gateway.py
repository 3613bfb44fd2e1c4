"""`llmcfsr serve` with a real tritonserver behind the gateway: answers, kills, signals, keys.

LLMCFSR_SECURITY_OUT: a file for one JSON line of figures per test.
"""

import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.serving.item_table import write_titles
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.repository import export
from tests.gateway_process import GOOD, Served, bad, good_clients
from tests.load import meanwhile, note
from tests.served import IDS, write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("run") / "train", history_rule="masked")
    write_titles(folder, {raw: f"title of {raw}" for raw in IDS[::2]})
    seal(folder, "train", "key", {})
    return folder


@pytest.fixture(scope="module")
def repository(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "repo"
    export(trained, folder, ServeConfig(max_batch_size=16, max_top_k=50))
    return folder


@pytest.fixture(scope="module")
def served(repository, tmp_path_factory):
    running = Served(repository, tmp_path_factory.mktemp("log") / "stderr", "--set", "gateway.request_timeout=5")
    yield running
    assert running.stop() == 0


HISTORIES = [
    ["B001", "B005"],
    [],
    ["zzz"],
    ["B002"] * 30,
    ["B007", "nope", "B009", "é\x00"],
    IDS * 3,
    [" B003 ", "10.0"],
]


@pytest.mark.parametrize(
    "filters",
    [{}, {"exclude_seen": True}, {"exclude_seen": False}, {"deny": ["B001", "q"]}, {"allow": ["B004", "B001", "q"]},
     {"allow": ["none known"]}],
    ids=str,
)  # fmt: skip
def test_the_gateway_answers_what_the_library_does(served, trained, filters):
    offline = Recommender.load(trained)
    wanted = offline.answer(HISTORIES, 7, **filters)
    asked = [{"history": history, "k": 7, **filters} for history in HISTORIES]
    status, _, many = served.recommend({"users": asked})
    assert status == 200, many
    for row, (question, found) in enumerate(zip(asked, many["answers"])):
        alone = served.recommend(question)[2]
        for answer in (found, alone):
            ids = [item["id"] for item in answer["items"]]
            assert ids == [raw for raw in wanted.items[row] if raw is not None]
            scores = np.array([item["score"] for item in answer["items"]], np.float32)
            np.testing.assert_allclose(scores, wanted.scores[row][: len(ids)], atol=1e-4)
            assert (answer["unknown"], answer["fallback"]) == (wanted.unknown[row], wanted.fallback[row])
            assert answer["exact"] and not answer["degraded"]
            assert all(item.get("title") == (f"title of {item['id']}" if item["id"] in IDS[::2] else None)
                       for item in answer["items"])  # fmt: skip


def test_reasons_are_those_of_the_library_and_sum_to_the_score(served, trained):
    offline = Recommender.load(trained)
    for history in (["B001", "B005", "B009"], ["B010"] * 20, ["B002", "zzz"]):
        answer = served.recommend({"history": history, "k": 6, "explain": True})[2]
        wanted = offline.explain(history, [item["id"] for item in answer["items"]])
        for item, reason in zip(answer["items"], wanted):
            others = set(history) - {item["id"], "zzz"}  # the item itself and an unknown one are not compared with
            assert item["reasons"]["match"] == reason.match and reason.match in (others or {None})
            for name, share in reason.shares.items():
                assert abs(item["reasons"]["shares"][name] - share) < 1e-4
            assert abs(sum(item["reasons"]["shares"].values()) - item["score"]) < 1e-3
    answer = served.recommend({"users": [{"history": [], "k": 2, "explain": True}, {"history": ["B001"], "k": 3}]})[2]
    assert [item["reasons"] for item in answer["answers"][0]["items"]] == [{"shares": {}, "match": None}] * 2
    assert all("reasons" not in item for item in answer["answers"][1]["items"])


def test_similar_items_are_what_follows_an_item(served, trained):
    wanted = Recommender.load(trained).answer([["B004"]], 6, exclude_seen=True).items[0].tolist()
    assert [item["id"] for item in served.ask("GET", "/recommend/item/B004?k=6")[2]["items"]] == wanted
    assert served.ask("GET", "/recommend/item/none")[0] == 404
    assert served.ask("GET", "/items/B004")[2] == {"id": "B004", "title": "title of B004", "interactions": 56}
    found = served.ask("GET", "/items?query=OF%20B00&limit=3")[2]["items"]
    assert [item["id"] for item in found] == ["B000", "B002", "B004"]
    assert served.ask("GET", "/health/ready")[2]["status"] == "ready"


KILLS = {
    "triton": lambda s: s.children()["triton"].kill(),
    "a step": lambda s: s.stubs()[0].kill(),
    "the gateway": lambda s: s.children()["gateway"].kill(),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", KILLS)
def test_what_is_killed_answers_again_and_nothing_is_wrong_in_between(served, name):
    told = served.log.read_text().count("restarting it")
    with good_clients(served, 3) as found:
        time.sleep(0.5)
        assert not found["degraded"] and not bad(found), found
        start = time.monotonic()
        KILLS[name](served)
        while served.log.read_text().count("restarting it") <= told:
            assert time.monotonic() - start < 60, served.log.read_text()
            time.sleep(0.02)
        while True:
            status, _, answer = served.recommend(GOOD)
            if status == 200 and not answer["degraded"]:
                break
            assert time.monotonic() - start < 120, served.log.read_text()
            time.sleep(0.05)
        seconds = round(time.monotonic() - start, 1)
        time.sleep(0.5)
        before = found["degraded"]
        time.sleep(0.5)
        after = found["degraded"] - before
    broken = sum(count for what, count in bad(found).items() if what.startswith("0:"))
    note("kill", name=name, seconds=seconds, found={k: found[k] for k in ("ok", "degraded", "refused")},
         broken_connections=broken)  # fmt: skip
    assert after == 0
    # A killed gateway takes its connections with it; what is answered is right.
    assert sum(bad(found).values()) == broken and (name == "the gateway" or not broken), found


@pytest.mark.parametrize("ending", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_finishes_what_is_in_flight(repository, tmp_path, ending):
    served = Served(repository, tmp_path / "stderr")
    family = [*served.children().values(), *served.stubs()]
    outcomes = []

    def ask(stop: threading.Event) -> None:
        while not stop.is_set():
            start = time.monotonic()
            status, _, answer = served.recommend({"users": [GOOD] * 16})
            degraded = status == 200 and any(one["degraded"] for one in answer["answers"])
            outcomes.append((start, time.monotonic(), status, degraded))
            if status != 200:
                time.sleep(0.01)

    with meanwhile(ask, *[()] * 4):
        time.sleep(1)
        signalled = time.monotonic()
        code = served.stop(ending)
        took = time.monotonic() - signalled
    flying = [outcome for outcome in outcomes if outcome[0] < signalled - 0.02 and outcome[1] > signalled]
    lost = [outcome for outcome in flying if outcome[2] != 200]
    note("signal", in_flight=len(flying), lost=len(lost), seconds=round(took, 1))
    assert code == 0 and took < 20 and not lost and not any(outcome[3] for outcome in outcomes), outcomes[-9:]
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_keys_are_needed_beyond_loopback(repository, tmp_path, capsys):
    from llmcfsr_merlin.cli.main import main

    assert main(["serve", str(repository), "--host", "0.0.0.0", "--gateway-port", "0"]) == 1
    shown = capsys.readouterr().err
    assert "--api-keys" in shown and shown.count("\n") == 1
