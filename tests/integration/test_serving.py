"""A live tritonserver: both layouts, HTTP and gRPC, hostile requests, reload under load."""

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.new_items import add_items
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.repository import export, publish
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from tests.load import meanwhile
from tests.served import DIMENSION, IDS, ITEMS, served_bundle, write_model

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]
HISTORIES = [["B001", "B005"], [], ["zzz"], ["B002"] * 30, [None, "B003"], ["B007", "nope", "B009", "é\x00"], IDS * 3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("train"), history_rule="masked")


@pytest.fixture(scope="module", params=[("ensemble", "onnxruntime"), ("merged", "torch")], ids=lambda pair: pair[0])
def server(request, trained, tmp_path_factory):
    """Served from a repository that was exported, moved and made read-only."""
    layout, engine = request.param
    folder = tmp_path_factory.mktemp(layout)
    serve = ServeConfig(layout=layout, engine=engine, max_batch_size=16, max_top_k=50)
    export(trained, folder / "made", serve)
    # Triton writes the path into a line for bash.
    repository = (folder / "made").rename(folder / 'moved here; R&D, it\'s "(1)" `x` $HOME *\n')
    subprocess.run(["chmod", "-R", "a-w", str(repository)], check=True)
    with Server(repository, threads=1, timeout=60) as running:
        running.layout = layout
        yield running
    subprocess.run(["chmod", "-R", "u+w", str(repository)], check=True)


@pytest.mark.parametrize("protocol", ["http_url", "grpc_url"])
@pytest.mark.parametrize(
    "filters",
    [{}, {"exclude_seen": True}, {"exclude_seen": False}, {"deny": ["B001", "q"]}, {"allow": ["B004", "B001", "q"]},
     {"allow": ["none known"]}],
    ids=str,
)  # fmt: skip
def test_served_equals_offline(server, trained, protocol, filters):
    found = check_served(trained, getattr(server, protocol), HISTORIES * 3, 7, **filters)
    assert (found.equal + found.ties, found.different) == (3 * len(HISTORIES), 0), found


def test_a_request_that_says_nothing_leaves_out_what_the_model_was_trained_to_leave_out(server):
    status, answer = ask(server, {"inputs": [tensor("HISTORY", [["B001", "B005"]]), tensor("TOP_K", [[50]], "INT32")]})
    assert status == 200 and not {"B001", "B005"} & set(found_items(answer))
    kept = tensor("EXCLUDE_SEEN", [[False]], "BOOL")
    asked = [tensor("HISTORY", [["B001", "B005"]]), tensor("ALLOW", [["B001", "B005", "B009"]]), kept]
    assert set(found_items(ask(server, {"inputs": asked})[1])) == {"B001", "B005", "B009", ""}


def found_items(answer: dict) -> list[str]:
    return next(one["data"] for one in answer["outputs"] if one["name"] == "ITEMS")


def test_table_flags_and_padding(server, trained):
    with Client(server.grpc_url) as client:
        answers = client.answer([["B001", "zzz", "yyy"], ["zzz"]], 3, allow=["B001", "B002"])
        table = client.recommend([["B001"], ["B002"]], k=2)
    assert answers.unknown.tolist() == [2, 1] and answers.fallback.tolist() == [False, True]
    assert answers.items[1].tolist() == ["B001", "B002", None] and np.isnan(answers.scores[:, 2]).all()
    offline = Recommender.load(trained).recommend([["B001"], ["B002"]], k=2)
    assert table[["history", "rank", "item_id"]].equals(offline[["history", "rank", "item_id"]])


def test_reasons_are_those_of_the_library(server, trained):
    offline = Recommender.load(trained)
    with Client(server.grpc_url) as client:
        for history in (["B001", "B005"], ["zzz"], ["B009"], IDS):
            items = ["B005", "nope", "B001", "B040", "B001"]
            for found, wanted in zip(client.explain(history, items), offline.explain(history, items), strict=True):
                assert (found is None) == (wanted is None)
                if wanted is not None:
                    assert found.match == wanted.match and found.shares == pytest.approx(wanted.shares, abs=1e-4)
        assert client.explain(["B001"], []) == []


def ask(server, body) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.http_url}/v2/models/recommend/infer", data=data)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def tensor(name, data, datatype="BYTES", shape=None) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or list(np.shape(data)), "data": data}


HISTORY = tensor("HISTORY", [["B001", "B002"]])


def test_reasons_are_made_for_those_who_ask(server):
    status, plain = ask(server, {"inputs": [HISTORY]})
    names = {output["name"] for output in plain["outputs"]}
    assert status == 200 and "ITEMS" in names and "REASONS" not in names
    if server.layout == "ensemble":  # has a model for them
        return
    rows = [tensor("HISTORY", [["B001", "B002"], ["B003", ""]]), tensor("EXPLAIN", [[False], [True]], "BOOL")]
    status, told = ask(server, {"inputs": rows})
    found = {output["name"]: output for output in told["outputs"]}
    assert status == 200 and found["REASONS"]["shape"] == found["ITEMS"]["shape"] == [2, 10]
    assert all(set(json.loads(text)) == {"shares", "match"} for text in found["REASONS"]["data"])
    status, wrong = ask(server, {"inputs": [HISTORY, tensor("EXPLAIN", [[True, True]], "BOOL")]})
    assert status == 400 and "EXPLAIN" in wrong["error"]


HOSTILE = {
    "no history": ([tensor("TOP_K", [[3]], "INT32")], "HISTORY"),
    "no inputs": ([], "input"),
    "k zero": ([HISTORY, tensor("TOP_K", [[0]], "INT32")], "TOP_K"),
    "k negative": ([HISTORY, tensor("TOP_K", [[-5]], "INT32")], "TOP_K"),
    "k above the limit": ([HISTORY, tensor("TOP_K", [[51]], "INT32")], "TOP_K"),
    "k two columns": ([HISTORY, tensor("TOP_K", [[1, 2]], "INT32")], "TOP_K"),
    "k as float": ([HISTORY, tensor("TOP_K", [[3.5]], "FP32")], "TOP_K"),
    "k other rows": ([HISTORY, tensor("TOP_K", [[1], [2]], "INT32")], "batch size"),
    "history of floats": ([tensor("HISTORY", [[1.0]], "FP32")], "HISTORY"),
    "history of one dimension": ([tensor("HISTORY", ["B001"])], "HISTORY"),
    "history without rows": ([tensor("HISTORY", [], shape=[0, 1])], "HISTORY"),
    "extra tensor": ([HISTORY, tensor("COLOUR", [["red"]])], "COLOUR"),
    "empty allow list": ([HISTORY, tensor("ALLOW", [[""]])], "ALLOW"),
    "exclude_seen as text": ([HISTORY, tensor("EXCLUDE_SEEN", [["yes"]])], "EXCLUDE_SEEN"),
    "batch too large": ([tensor("HISTORY", [["B001"]] * 17)], "batch-size"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_malformed_request_names_the_field_and_the_next_one_is_answered(server, name):
    inputs, word = HOSTILE[name]
    status, reply = ask(server, {"inputs": inputs})
    assert status == 400 and word in reply["error"], reply
    assert ask(server, {"inputs": [HISTORY]})[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"null", b'{"inputs": null}', b"\x00\xff" * 50], ids=range(5))
def test_broken_json_is_refused(server, body):
    assert ask(server, body)[0] in (400, 500)  # Triton itself calls broken JSON an internal error
    assert ask(server, {"inputs": [HISTORY]})[0] == 200


def test_ten_thousand_items_and_hostile_ids(server, trained):
    histories = [[IDS[i % ITEMS] for i in range(10_000)], ["\u0000", "💥" * 1000, "B001'; --", "NaN"], ["B001 "]]
    assert check_served(trained, server.http_url, histories, 50).passed


def test_documented_request_and_answer(server):
    body = json.loads((resource("schemas") / "request.json").read_text())
    known = ["B001", "B002", "B003", "B004"]
    status, reply = ask(server, body)
    assert status == 200 and known
    documented = json.loads((resource("schemas") / "response.json").read_text())
    described = [(one["name"], one["datatype"], one["shape"]) for one in documented["outputs"]]
    assert sorted(described) == sorted((one["name"], one["datatype"], one["shape"]) for one in reply["outputs"])
    if shutil.which("curl"):
        url = f"{server.http_url}/v2/models/recommend/infer"
        path = resource("schemas") / "request.json"
        done = subprocess.run(["curl", "-sf", url, "-d", f"@{path}"], capture_output=True, check=True)
        assert json.loads(done.stdout)["outputs"] == reply["outputs"]


def test_counters_count(server):
    def counted() -> dict[str, float]:
        text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("llmcfsr_")]
        return {name.partition("{")[0]: float(value) for name, value in lines}

    before = counted()
    with Client(server.http_url) as client:
        client.answer([["zzz", "yyy"], ["B001", "qqq"]])
    after = counted()
    assert after["llmcfsr_unknown_ids"] - before["llmcfsr_unknown_ids"] == 3
    assert after["llmcfsr_fallbacks"] - before["llmcfsr_fallbacks"] == 1


def test_random_requests(server, trained):
    requests = int(os.environ.get("LLMCFSR_FUZZ", 300))
    random = np.random.default_rng(0)
    offline = Recommender.load(trained)
    pool = [*IDS, "zzz", "", "B00", "é"]
    with Client(server.grpc_url) as client:
        for _ in range(requests):
            histories = [random.choice(pool, random.integers(0, 30)).tolist() for _ in range(random.integers(1, 5))]
            histories = [[raw for raw in history if raw] for history in histories]
            k = int(random.integers(1, 51))
            filters = {"exclude_seen": bool(random.integers(2))}
            if random.random() < 0.3:
                filters["allow"] = random.choice(IDS, random.integers(1, 20)).tolist()
            if random.random() < 0.3:
                filters["deny"] = random.choice(IDS, random.integers(1, 20)).tolist()
            wanted, found = offline.answer(histories, k, **filters), client.answer(histories, k, **filters)
            np.testing.assert_allclose(found.scores[:, : wanted.scores.shape[1]], wanted.scores, atol=1e-4)
            assert (found.unknown == wanted.unknown).all() and (found.fallback == wanted.fallback).all()
            moved = found.items[:, : wanted.items.shape[1]] != wanted.items
            assert moved.mean() < 0.02, "more than ties moved"


@pytest.mark.parametrize("server", [("ensemble", "onnxruntime")], indirect=True, ids=["ensemble"])
def test_different_lengths_join_one_forward(server):
    def executions() -> int:
        model = "rank"
        text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
        rows = [
            line for line in text.splitlines() if line.startswith("nv_inference_exec_count") and f'"{model}"' in line
        ]
        return int(float(rows[0].rsplit(" ", 1)[1]))

    before, each, workers = executions(), 20, 8

    def flood(seed: int) -> None:
        with Client(server.grpc_url) as client:
            for i in range(each):
                client.answer([IDS[: 1 + (seed * 7 + i) % 40]], 5)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(flood, range(workers)))
    assert executions() - before < each * workers, "on a busy machine few meet"


@pytest.mark.parametrize("layout", [pytest.param("ensemble", marks=pytest.mark.slow), "merged"])
def test_new_items_are_published_and_reloaded_under_load(trained, tmp_path, layout):
    """`LLMCFSR_RELOADS` reloads while clients ask: no request fails, and the new items are recommended."""
    reloads = int(os.environ.get("LLMCFSR_RELOADS", 1))
    serve = ServeConfig(layout=layout)
    export(trained, tmp_path / "repo", serve)
    rows = [{"item_id": f"N{i}", "title": f"new {i}"} for i in range(10)]
    vectors = torch.randn(10, DIMENSION, generator=torch.Generator().manual_seed(1)).numpy()
    add_items(trained, tmp_path / "grown", rows, lambda attributes: vectors)
    failures, answered = [], [0]
    with Server(tmp_path / "repo", threads=1) as server:

        def load(stop: threading.Event) -> None:
            with Client(server.grpc_url) as client:
                while not stop.is_set():
                    try:
                        client.answer([["B001", "B002"]], 5)
                        answered[0] += 1
                    except InputError as error:
                        failures.append(str(error))

        with meanwhile(load, (), ()):
            for turn in range(reloads):
                publish(tmp_path / "grown" if turn % 2 == (reloads - 1) % 2 else trained, tmp_path / "repo", serve)
                server.reload()
                time.sleep(0.2)
        assert not failures and answered[0] > 10
        assert check_served(tmp_path / "grown", server.grpc_url, [["N1", "B002"], ["B003"]], 70).passed
        with Client(server.grpc_url) as client:
            assert client.answer([["B001"]], 1, allow=["N3"]).items.tolist() == [["N3"]]
    assert served_bundle(tmp_path / "repo").is_dir()


def test_changed_weights_do_not_load(trained, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    repository = tmp_path / "export" / "model_repo"
    repository.parent.mkdir()
    export(trained, repository, ServeConfig(layout="merged"))
    weights = repository / "recommend/1/bundle/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="sha256 differs") as raised:
        Server(repository, threads=1, timeout=60).start()
    told = str(raised.value)
    assert told.endswith(f"run `llmcfsr export {tmp_path}/config.json --run {tmp_path}`"), told
    assert len(told) < 600 and "\n" not in told


def test_a_stopped_server_leaves_nothing(trained, tmp_path):
    import psutil

    export(trained, tmp_path / "repo", ServeConfig(layout="merged"))
    with Server(tmp_path / "repo", threads=1) as server:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        prefix, url = f"{server._folder.name}_", server.http_url
        assert len(family) > 1 and f"127.0.0.1:{server.ports['http']}" in server.log
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))
    with pytest.raises(InputError, match="no server answers"):
        Client(url).recommend([["B001"]])
