"""`llmcfsr serve` with a real tritonserver behind the gateway: answers, limits, enemies, kills, signals.

LLMCFSR_ATTACKS: seconds of each load (2). LLMCFSR_HOSTILE: hostile requests (200). LLMCFSR_SECURITY_OUT: a file for one
JSON line of figures a test.
"""

import collections
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
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
from tests.served import IDS, write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]
SECONDS = float(os.environ.get("LLMCFSR_ATTACKS", 2))
HOSTILE = int(os.environ.get("LLMCFSR_HOSTILE", 200))
JSON = {"content-type": "application/json"}
GOOD = {"history": ["B001", "B002"], "k": 5}


def note(test: str, **figures) -> None:
    print(test, figures)
    if out := os.environ.get("LLMCFSR_SECURITY_OUT"):
        with open(out, "a") as file:
            file.write(json.dumps({"test": test, **figures}) + "\n")


class Served:
    """A running `llmcfsr serve`."""

    def __init__(self, repository: Path, log: Path, *more: str):
        self.log = log
        command = [sys.executable, "-m", "llmcfsr_merlin.cli.main", "serve", str(repository), "--gateway-port", "0"]
        command += ["--grpc-port", "0", "--metrics-port", "0", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
        words = self.process.stdout.readline().split()
        assert words, log.read_text()
        self.port, self.grpc = int(words[1].rpartition(":")[2]), words[4].removeprefix("grpc://")

    def ask(self, method: str, path: str, body=None, headers=None, timeout: float = 20):
        """Status, headers and body as JSON; status 0 where the connection broke."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**(JSON if data is not None else {}), **(headers or {})})
            reply = connection.getresponse()
            text = reply.read()
            is_json = "json" in reply.getheader("content-type", "")
            return reply.status, dict(reply.getheaders()), json.loads(text) if is_json else text
        except (OSError, http.client.HTTPException) as error:
            return 0, {}, repr(error)
        finally:
            connection.close()

    def recommend(self, body, **options):
        return self.ask("POST", "/recommend", body, **options)

    def children(self) -> dict[str, psutil.Process]:
        found = {}
        for child in psutil.Process(self.process.pid).children():
            found["gateway" if "gateway.process" in " ".join(child.cmdline()) else "triton"] = child
        return found

    def stubs(self) -> list[psutil.Process]:
        return [child for child in self.children()["triton"].children(recursive=True) if "stub" in child.name()]

    def stop(self, ending=signal.SIGTERM) -> int:
        self.process.send_signal(ending)
        return self.process.wait(40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("run") / "train")
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
    [{}, {"exclude_seen": True}, {"deny": ["B001", "q"]}, {"allow": ["B004", "B001", "q"]}, {"allow": ["none known"]}],
    ids=str,
)
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


@contextlib.contextmanager
def good_clients(served: Served, count: int = 4):
    """Clients in the background; yields the counter of what they got: ok, degraded, refused (503), or what else."""
    found, stop = collections.Counter(), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, headers, answer = served.recommend(GOOD)
            if status == 200 and len({item["id"] for item in answer["items"]}) == 5:
                found["degraded" if answer["degraded"] else "ok"] += 1
            elif status == 503 and "retry-after" in {name.lower() for name in headers}:
                found["refused"] += 1
            else:
                found[f"{status}: {answer}"[:150]] += 1
            time.sleep(0.005)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def bad(found: collections.Counter) -> dict:
    return {name: count for name, count in found.items() if name not in ("ok", "degraded", "refused")}


def hostile(draw: random.Random) -> tuple[str, bytes]:
    """A request that breaks a rule of HTTP, of JSON or of the API, as raw bytes, and its name."""

    def post(body: bytes, kind: bytes = b"application/json", path: bytes = b"/recommend", more: bytes = b"") -> bytes:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n"
        return head % (path, kind, more, len(body)) + body

    def of(value) -> bytes:
        return post(json.dumps(value).encode())

    noise = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 300)))
    wild = draw.choice([None, True, -1, 0, 51, 2**63, 2**31, 1.5, "", "x" * 300, [], {}, [[]], ["B001"] * 1500, [None]])
    chunked = (
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    kinds = {
        "noise": noise + b"\r\n\r\n",
        "noise as a body": post(noise),
        "a wild field": of({"history": ["B001"], draw.choice(["history", "k", "allow", "deny", "explain", "z"]): wild}),
        "wild users": of({"users": wild}),
        "nested": post(b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "nested objects": post(b'{"a":' * 40_000),
        "many fields": of({f"f{i}": i for i in range(9000)}),
        "large": post(b'{"history": ["' + b"x" * 400_000 + b'"]}'),
        "a length that lies": post(b"{}", more=b"Content-Length: 9\r\n"),
        "a negative length": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}",
        "a huge length": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: 99999999999\r\n\r\n{}",
        "one-byte chunks": chunked + b"1\r\na\r\n" * 60_000 + b"0\r\n\r\n",
        "a chunk that lies": chunked + b"FFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
        "a long head": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 99) for i in range(400))
                       + b"\r\n",
        "a long path": b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "another path": b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
                        % draw.choice([b"v2/models/recommend/infer", b"../../etc/passwd", b"items/%00%ff",
                                       
                                       b"items/" + b"%2e" * 99,
                                       b"v2/repository/index", b"recommend/item/%F0%9F%92%A5?k=0", b"items?query=%00"]),
        "another method": b"%s /recommend HTTP/1.1\r\nHost: x\r\n\r\n"
                          % draw.choice([b"PUT", b"TRACE", b"CONNECT", b"PATCH"]),
        "an upgrade": b"GET /recommend HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "smuggled": post(b"{}", more=b"Transfer-Encoding: chunked\r\n"),
        "pipelined": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 500,
        "half a request": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: appl",
        "another kind": post(b'{"history": ["B001"]}', kind=b"text/plain"),
        "deep unicode": of({"history": ["\ud83d\udca5" * 100, "\u0000", "\u202e"], "k": 3}),
    }  # fmt: skip
    name = draw.choice(sorted(kinds))
    return name, kinds[name]


def test_hostile_requests_harm_nobody(served):
    before = {name: process.pid for name, process in served.children().items()}
    pids, statuses, lock = sorted(stub.pid for stub in served.stubs()), collections.Counter(), threading.Lock()

    def attack(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(HOSTILE // 8):
            name, raw = hostile(draw)
            status = "closed"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", served.port), 10) as connection:
                connection.settimeout(3)
                if name == "half a request":
                    connection.sendall(raw)  # and goes away
                    status = "left"
                else:
                    connection.sendall(raw)
                    first = connection.recv(100)
                    status = first[9:12].decode() or "closed"
            with lock:
                statuses[status] += 1
                if status.startswith("5"):
                    statuses[f"{status} {name}"] += 1

    with good_clients(served, 2) as found:
        threads = [threading.Thread(target=attack, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    note("hostile", requests=HOSTILE, statuses=dict(statuses), good=found["ok"], found=dict(found))
    assert not [status for status in statuses if status.startswith("5") and not status.startswith("503")], statuses
    assert found["ok"] > 10 and found["ok"] == sum(found.values()), found
    assert {name: process.pid for name, process in served.children().items()} == before
    assert sorted(stub.pid for stub in served.stubs()) == pids and "restarting it" not in served.log.read_text()


def test_clients_that_go_away_take_nothing_with_them(served):
    body = json.dumps({"users": [{"history": IDS, "k": 50}] * 64}).encode()
    raw = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    before = served.children()["triton"].pid
    with good_clients(served, 2) as found:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", served.port), 10) as connection:
                connection.sendall(raw + body)
                time.sleep(random.random() * 0.02)
    time.sleep(1)
    told = served.ask("GET", "/metrics")[2].decode()
    cancelled = float(
        next(line for line in told.splitlines() if line.startswith("llmcfsr_gateway_cancelled_total")).split()[1]
    )
    note("gone", cancelled=cancelled, found=dict(found))
    assert cancelled > 3 and not bad(found) and found["ok"] > 1, found
    assert "llmcfsr_gateway_in_flight 0.0" in told and served.children()["triton"].pid == before


def test_slow_clients_are_closed_and_in_nobodys_way(served):
    """Slowloris: heads and bodies that never end, answers that nobody reads."""
    heads = [
        b"GET /items HTTP/1.1\r\nHost: x\r\nX-A: ",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{",
        b"",
    ]
    slow = []
    for i in range(90):
        connection = socket.create_connection(("127.0.0.1", served.port), 10)
        connection.sendall(heads[i % 3])
        slow.append(connection)
    with good_clients(served, 2) as found:
        start, open_ = time.monotonic(), list(slow)
        while open_ and time.monotonic() - start < 30:
            for connection in list(open_):
                try:
                    connection.settimeout(0.001)
                    if connection.recv(1000) == b"":
                        open_.remove(connection)
                        continue
                except TimeoutError:
                    pass
                except OSError:
                    open_.remove(connection)
                    continue
                with contextlib.suppress(OSError):
                    connection.send(b"a")  # a byte now and then
            time.sleep(0.3)
        took = time.monotonic() - start
    note("slowloris", connections=len(slow), left_open=len(open_), seconds=round(took, 1), found=dict(found))
    for connection in slow:
        connection.close()
    assert not open_ and found["ok"] == sum(found.values()) and found["ok"] > 10, found


def test_two_thousand_connections(served):
    """Open, idle after a request; others are answered meanwhile, and so are these."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this machine lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    raw = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    connections, answered = [], 0
    try:
        with good_clients(served, 2) as found:
            for _ in range(2000):
                connection = socket.create_connection(("127.0.0.1", served.port), 20)
                connection.sendall(raw)
                connections.append(connection)
            for connection in connections:
                connection.settimeout(20)
                answered += connection.recv(12).endswith(b"200")
            time.sleep(0.5)
    finally:
        for connection in connections:
            connection.close()
    memory = served.children()["gateway"].memory_info().rss / 1e6
    note("connections", count=len(connections), answered=answered, memory_mb=round(memory), found=dict(found))
    assert answered == 2000 and found["ok"] == sum(found.values()) and found["ok"] > 5, found


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
    outcomes, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            start = time.monotonic()
            status, _, answer = served.recommend({"users": [GOOD] * 16})
            degraded = status == 200 and any(one["degraded"] for one in answer["answers"])
            outcomes.append((start, time.monotonic(), status, degraded))
            if status != 200:
                time.sleep(0.01)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    signalled = time.monotonic()
    code = served.stop(ending)
    took = time.monotonic() - signalled
    stop.set()
    for thread in threads:
        thread.join()
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
