"""Three tritonservers on loopback behind one gateway: one dies, comes back, and each gets a new version in turn.

LLMCFSR_SECURITY_OUT: a file for one JSON line of figures a test.
"""

import collections
import contextlib
import http.client
import json
import threading
import time
from pathlib import Path

import pytest

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.serving.item_table import ItemTable
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.repository import export, newest_items, publish
from llmcfsr_merlin.serving.server import Server
from tests.load import meanwhile, note, until
from tests.served import write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
from llmcfsr_merlin.serving.gateway_server import GatewayOptions, GatewayServer

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]
SERVE = ServeConfig(layout="merged", max_top_k=50)  # one step: three servers start sooner


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> list[Path]:
    return [write_model(tmp_path_factory.mktemp("train") / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def stack(versions, tmp_path_factory):
    """Three servers, each with its own repository, and the gateway before them."""
    folder = tmp_path_factory.mktemp("replicas")
    with contextlib.ExitStack() as owned:
        servers = []
        for number in range(3):
            export(versions[0], folder / str(number), SERVE)
            servers.append(owned.enter_context(Server(folder / str(number), threads=1)))
        options = GatewayOptions(port=0, settings=GatewayConfig(patience=2.0))
        gateway = owned.enter_context(GatewayServer(folder / "0", options))
        gateway.start([server.grpc_url.removeprefix("grpc://") for server in servers])
        yield servers, gateway


@contextlib.contextmanager
def load(gateway: GatewayServer, count: int = 3):
    """Clients in the background; yields what they got: (status, degraded, model version)."""
    found = collections.Counter()
    body = json.dumps({"history": ["B001", "B002"], "k": 5})

    def ask(stop: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        while not stop.is_set():
            connection.request("POST", "/recommend", body, {"content-type": "application/json"})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            found[reply.status, answer.get("degraded"), answer.get("model_version")] += 1
        connection.close()

    with meanwhile(ask, *[()] * count):
        yield found


def replicas_up(gateway: GatewayServer) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(line.endswith(" 1.0") for line in lines if line.startswith("llmcfsr_gateway_replica_up{"))


def test_a_replica_that_is_killed_is_missed_by_nobody_and_comes_back(stack):
    servers, gateway = stack
    until(lambda: replicas_up(gateway) == 3)
    with load(gateway) as found:
        time.sleep(0.5)
        servers[1]._process.kill()
        out = until(lambda: replicas_up(gateway) == 2)
        time.sleep(0.5)
        servers[1].restart()
        back = until(lambda: replicas_up(gateway) == 3)
        time.sleep(0.3)
    note("replica killed", put_aside_s=out, back_after_ready_s=back, found={str(k): v for k, v in found.items()})
    assert len(found) == 1 and next(iter(found))[:2] == (200, False) and back < 10, found


@pytest.mark.slow  # three servers start twice
@pytest.mark.timeout(600)
def test_a_new_version_goes_round_without_a_failed_request(stack, versions):
    """Reloaded in place, and, the last one, stopped and started again."""
    servers, gateway = stack
    old = ItemTable(newest_items(servers[0].repository)).version
    with load(gateway) as found:
        for server in servers:
            publish(versions[1], server.repository, SERVE)
        for server in servers[:2]:
            server.reload()
            time.sleep(0.3)
        port = servers[2].ports["grpc"]
        servers[2].stop()
        servers[2].__init__(servers[2].repository, grpc_port=port, threads=1)
        servers[2].start()
        new = ItemTable(newest_items(servers[0].repository)).version
        until(lambda: replicas_up(gateway) == 3)
        time.sleep(1)
        mixed = dict(found)
        found.clear()
        time.sleep(0.5)
    note("rolling release", found={str(k): v for k, v in mixed.items()})
    assert {(status, degraded) for status, degraded, _ in mixed} == {(200, False)}, mixed
    assert {version for *_, version in mixed} == {old, new} and old != new
    assert {version for *_, version in found} == {new}, found
