"""`llmcfsr serve` behind the gateway among enemies: none costs the other clients an answer.

LLMCFSR_ATTACKS: seconds of each load (2). LLMCFSR_HOSTILE: hostile requests (200). LLMCFSR_SECURITY_OUT: a file for one
JSON line of figures per test.
"""

import collections
import contextlib
import json
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.repository import export
from tests.gateway_process import Served, bad, good_clients
from tests.load import note, until
from tests.served import IDS, write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]
SECONDS = float(os.environ.get("LLMCFSR_ATTACKS", 2))
HOSTILE = int(os.environ.get("LLMCFSR_HOSTILE", 200))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    export(write_model(folder / "train"), folder / "repo", ServeConfig(max_batch_size=16, max_top_k=50))
    running = Served(folder / "repo", folder / "stderr", "--set", "gateway.request_timeout=5")
    yield running
    assert running.stop() == 0


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

    with good_clients(served, 2) as found, ThreadPoolExecutor(8) as pool:
        list(pool.map(attack, range(8)))
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

    def gauge(name: str) -> float:
        lines = served.ask("GET", "/metrics")[2].decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"llmcfsr_gateway_{name}")).split()[1])

    # What the last ones left at Triton takes a loaded machine longer than a second.
    emptied = until(lambda: gauge("in_flight") == gauge("queued") == 0)
    cancelled = gauge("cancelled_total")
    note("gone", cancelled=cancelled, found=dict(found), emptied=emptied)
    assert cancelled > 3 and not bad(found) and found["ok"] > 1, found
    assert served.children()["triton"].pid == before


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
