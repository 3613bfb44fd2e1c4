"""Three tritonservers on loopback, each with a third of the catalogue, behind one gateway."""

import contextlib
import http.client
import json
import time

import pytest

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.repository import export
from llmcfsr_merlin.serving.server import Server
from tests.served import IDS, write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
from llmcfsr_merlin.serving.gateway_server import GatewayOptions, GatewayServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


def ask(gateway: GatewayServer, **body) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("POST", "/recommend", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    answer = json.loads(reply.read())
    connection.close()
    return reply.status, answer


def test_three_shards_answer_as_one_server_and_a_missing_one_is_named(tmp_path):
    trained = write_model(tmp_path / "train", lexical=8, history_rule="masked", retired=[0, 31])
    export(trained, tmp_path / "repo", ServeConfig(max_top_k=60))  # one repository for all of them
    library = Recommender.load(trained)
    settings = GatewayConfig(patience=2.0, fallback=False)
    with contextlib.ExitStack() as owned:
        servers = [owned.enter_context(Server(tmp_path / "repo", threads=1, shard=(n, 3))) for n in (1, 2, 3)]
        gateway = owned.enter_context(GatewayServer(tmp_path / "repo", GatewayOptions(port=0, settings=settings)))
        gateway.start([server.grpc_url.removeprefix("grpc://") for server in servers], sharded=True)
        seen = ({"exclude_seen": True}, {"exclude_seen": False})
        every = ({}, *seen, {"allow": ["B004", "B031", "B058"]}, {"deny": ["B000", "B001"]})
        for history in (["B001", "B059"], ["B030"], [], ["zzz"], IDS, ["B007"] * 30):
            for filters in every:
                for k in (1, 10, 60):
                    wanted = library.answer([history], k, **filters)
                    status, found = ask(gateway, history=history, k=k, explain=True, **filters)
                    left = [item for item in wanted.items[0] if item is not None]
                    assert status == 200 and [item["id"] for item in found["items"]] == left
                    assert not {"B000", "B031"} & set(left), "retired, also where they are allowed"
                    scores = [item["score"] for item in found["items"]]
                    assert scores == pytest.approx(wanted.scores[0][: len(left)].tolist(), abs=1e-4)
                    assert found["exact"] and (found["fallback"], found["unknown"]) == (
                        bool(wanted.fallback[0]), int(wanted.unknown[0])
                    )  # fmt: skip
        status, found = ask(gateway, history=["B001", "B059"], k=9, explain=True)
        for item, reason in zip(found["items"], library.explain(["B001", "B059"], [i["id"] for i in found["items"]])):
            assert item["reasons"]["match"] == reason.match
            assert item["reasons"]["shares"] == pytest.approx(reason.shares, abs=1e-4)
        servers[1]._process.kill()
        deadline = time.monotonic() + 20
        while (answer := ask(gateway, history=["B001"]))[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert answer[0] == 503 and "shard 2 of 3" in answer[1]["detail"], answer
        servers[1].restart()
        while ask(gateway, history=["B001"])[0] != 200:
            assert time.monotonic() < deadline + 40
            time.sleep(0.2)
