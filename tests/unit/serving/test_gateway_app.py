"""The application in this process, before stand-ins for Triton: which replica is asked, limits, cache, fallback."""

import asyncio
import json
import time

import grpc
import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.serving.repository import export
from tests.served import write_model

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
from llmcfsr_merlin.serving.gateway import replicas
from llmcfsr_merlin.serving.gateway.keys import Keys
from tests.gateways import JSON, StandIn, asked, listening, run

GOOD = {"history": ["B001", "B002"], "k": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def repository(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "repo"
    export(trained, folder, ServeConfig(max_batch_size=4, max_top_k=50))
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(replicas, "_PERIOD", 0.05)
    monkeypatch.setattr(replicas, "_PERIOD_ASIDE", 0.05)


def test_replicas_are_asked_in_turn_and_put_aside_while_they_are_gone(repository):
    async def work():
        stand_ins = [StandIn(), StandIn(), StandIn()]
        first, second, third = map(listening, stand_ins)
        async with first as a, second as b, third as c, asked(repository, [a, b, c]) as client:
            for _ in range(9):
                assert (await client.post("/recommend", json=GOOD)).status_code == 200
            assert [one.asked for one in stand_ins] == [3, 3, 3]
            # The third is gone: nobody notices.
        async with listening(stand_ins[0]) as a, asked(repository, [a, c]) as client:
            for _ in range(4):
                answer = (await client.post("/recommend", json=GOOD)).json()
                assert answer["items"][0] == {"id": "B002", "score": 1.5} and not answer["degraded"]
            assert f'replica_up{{replica="127.0.0.1:{c}"}} 0.0' in (await client.get("/metrics")).text
            before = stand_ins[2].asked
            async with listening(stand_ins[2], c):  # it is back
                for _ in range(100):
                    await client.post("/recommend", json=GOOD)
                    if stand_ins[2].asked > before:
                        break
                    await asyncio.sleep(0.05)
                assert stand_ins[2].asked > before

    run(work)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_what_one_replica_fails_at_another_answers(repository, code):
    async def work():
        good, bad = StandIn(), StandIn()
        async with listening(good) as a, listening(bad) as b, asked(repository, [a, b]) as client:
            bad.fail = code
            for _ in range(6):
                assert (await client.post("/recommend", json=GOOD)).json()["degraded"] is False
            assert good.asked == 6

    run(work)


def test_a_hung_replica_is_put_aside_and_what_it_was_asked_is_answered_by_another(repository):
    async def work():
        good, hung = StandIn(), StandIn()
        limits = {"patience": 0.3, "timeout": 5}
        async with listening(good) as a, listening(hung) as b, asked(repository, [a, b], limits) as client:
            hung.hang = True
            start = time.monotonic()
            answers = await asyncio.gather(*(client.post("/recommend", json=GOOD) for _ in range(6)))
            assert [one.status_code for one in answers] == [200] * 6 and time.monotonic() - start < 3
            assert not any(one.json()["degraded"] for one in answers)
            hung.hang = False

    run(work)


def test_a_busy_replica_is_not_taken_for_hung(repository):
    async def work():
        slow = StandIn()
        async with listening(slow) as port, asked(repository, [port], {"patience": 0.2, "timeout": 5}) as client:
            slow.delay = 0.1
            for _ in range(6):
                assert (await client.post("/recommend", json=GOOD)).json()["degraded"] is False
            assert f'replica_ejections{{replica="127.0.0.1:{port}"}} 0.0' in (await client.get("/metrics")).text

    run(work)


@pytest.mark.parametrize(
    "filters", [{}, {"exclude_seen": True}, {"deny": ["B003", "B000"]}, {"allow": ["B009", "zzz", "B004"]}], ids=str
)
def test_while_all_are_gone_the_popular_items_are_answered_and_flagged(repository, trained, filters):
    async def work():
        async with asked(repository, [1]) as client:
            reply = await client.post("/recommend", json={"history": ["B001", "zzz"], "k": 9, **filters})
            answer = reply.json()
            offline = Recommender.load(trained)
            # As the library answers a user of whom nothing is known.
            deny = filters.get("deny", []) + (["B001"] if filters.get("exclude_seen") else [])
            wanted = offline.answer([[]], 9, deny=deny or None, allow=filters.get("allow"))
            assert [item["id"] for item in answer["items"]] == [raw for raw in wanted.items[0] if raw]
            assert (answer["degraded"], answer["fallback"], answer["unknown"]) == (True, False, 1)
            assert (await client.get("/health/live")).status_code == 200
            ready = await client.get("/health/ready")
            assert ready.status_code == 503 and ready.headers["retry-after"]
        async with asked(repository, [1], {"fallback": False}) as client:
            reply = await client.post("/recommend", json=GOOD)
            assert reply.status_code == 503 and reply.headers["retry-after"]
            assert reply.json()["type"] == "urn:llmcfsr:problem:no-server"

    run(work)


def test_many_users_are_asked_in_parts_that_fit_and_answered_in_order(repository):
    async def work():
        stand_in = StandIn()
        async with listening(stand_in) as port, asked(repository, [port]) as client:
            users = [{"history": [f"B{i:03d}"], "k": 1} for i in range(11)]
            users[3] |= {"allow": ["B001"]}
            users[5] |= {"explain": True}
            answers = (await client.post("/recommend", json={"users": users})).json()["answers"]
            assert [one["items"][0]["id"] for one in answers] == [f"B{i:03d}" for i in range(11)]
            assert stand_in.asked == 5  # 9 in parts of 4, and the two that cannot be asked with others
            assert answers[5]["items"][0]["reasons"] == {"shares": {"network": 1.5}, "match": "B001"}
            assert "reasons" not in answers[4]["items"][0]

    run(work)


def test_beyond_the_queue_requests_are_refused_at_once(repository):
    async def work():
        slow = StandIn()
        limits = {"in_flight": 2, "queue": 3, "timeout": 5}
        async with listening(slow) as port, asked(repository, [port], limits) as client:
            slow.delay = 0.2
            replies = await asyncio.gather(*(client.post("/recommend", json=GOOD) for _ in range(12)))
            found = sorted(reply.status_code for reply in replies)
            assert found == [200] * 5 + [503] * 7 and slow.largest <= 3  # the watch's own beside
            refused = next(reply for reply in replies if reply.status_code == 503)
            assert refused.headers["retry-after"] and refused.json()["type"].endswith("overloaded")
            assert (await client.post("/recommend", json=GOOD)).status_code == 200

    run(work)


def test_what_takes_too_long_is_given_up(repository):
    async def work():
        slow = StandIn()
        async with listening(slow) as port, asked(repository, [port], {"timeout": 0.2}) as client:
            slow.delay = 5
            reply = await client.post("/recommend", json=GOOD)
            assert reply.status_code == 503 and reply.json()["type"].endswith("timeout")
            await asyncio.sleep(0.1)
            assert slow.cancelled == 1 and client is not None

    run(work)


def test_the_cache_answers_again_until_the_version_changes(repository):
    async def work():
        stand_in = StandIn(tag=1)
        async with listening(stand_in) as port, asked(repository, [port], {"cache": 10}) as client:
            first = (await client.post("/recommend", json=GOOD)).json()
            assert (await client.post("/recommend", json=GOOD)).json() == first and stand_in.asked == 1
            await client.post("/recommend", json={**GOOD, "k": 1})
            assert stand_in.asked == 2
            stand_in.tag = 2
            await asyncio.sleep(0.3)  # the watch has seen it
            again = (await client.post("/recommend", json=GOOD)).json()
            assert stand_in.asked == 3 and again["model_version"] == f"{2:015x}" != first["model_version"]
            assert "llmcfsr_gateway_cache_hits 1.0" in (await client.get("/metrics")).text

    run(work)


def test_keys_and_rates(repository, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"shop {'a' * 32}\ntests {'b' * 32}\n")
    path.chmod(0o600)

    async def work():
        limits = {"rate": 3}
        async with listening(StandIn()) as port, asked(repository, [port], limits, keys=Keys(path)) as client:
            for headers in ({}, {"x-api-key": "c" * 32}, {"authorization": "Bearer " + "a" * 31}):
                for url in ("/recommend", "/items?query=x", "/metrics", "/nothing"):
                    reply = await client.request("POST" if url == "/recommend" else "GET", url, headers=headers)
                    assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            for url in ("/health/live", "/health/ready", "/openapi.json", "/docs"):
                assert (await client.get(url)).status_code == 200
            shop, tests = {"x-api-key": "a" * 32}, {"authorization": "Bearer " + "b" * 32}
            codes = [(await client.post("/recommend", json=GOOD, headers=shop)).status_code for _ in range(8)]
            assert codes[:6] == [200] * 6 and codes[-1] == 429
            assert (await client.post("/recommend", json=GOOD, headers=tests)).status_code == 200

    run(work)


@pytest.mark.parametrize(
    "body, headers, status",
    [(b"{", JSON, 400), (b"", JSON, 400), (b"\xff\xfe", JSON, 400), (b"[" * 60_000, JSON, 400), (b"NaN", JSON, 400),
     (b"{}", {}, 415), (b"{}", {"content-type": "text/plain"}, 415), (b"{}", JSON, 422), (b"[]", JSON, 422),
     (b" " * 300_000, JSON, 413), (b'{"history": []}', {**JSON, "content-length": "9" * 40}, 413),
     (b'{"history": ["\\ud800"]}', JSON, 400)],
)  # fmt: skip
def test_what_is_no_question_never_reaches_triton(repository, body, headers, status):
    async def work():
        stand_in = StandIn()
        async with listening(stand_in) as port, asked(repository, [port]) as client:
            reply = await client.post("/recommend", content=body, headers=headers)
            assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
            assert reply.json()["status"] == status and stand_in.asked == 0

    run(work)


def test_other_paths_and_methods_are_problems_too(repository):
    async def work():
        async with listening(StandIn()) as port, asked(repository, [port]) as client:
            for method, url, status in (("GET", "/", 404), ("GET", "/recommend", 405), ("DELETE", "/items/B001", 405),
                                        ("GET", "/items/zzz", 404), ("GET", "/items/" + "x" * 300, 422),
                                        ("GET", "/items", 422), ("GET", "/items?query=%20", 422),
                                        ("GET", "/items?query=a&limit=0", 422),
                                        ("GET", "/recommend/item/B001?k=51", 422)):  # fmt: skip
                reply = await client.request(method, url)
                assert reply.status_code == status, (url, reply.text)
                assert reply.headers["content-type"] == "application/problem+json" and reply.json()["status"] == status
            assert (await client.get("/items/B001")).json()["interactions"] == 59

    run(work)


def test_no_page_may_ask_unless_it_is_named(repository):
    async def work():
        async with listening(StandIn()) as port:
            for cors, allowed in (((), None), (("https://shop.example",), "https://shop.example")):
                async with asked(repository, [port], cors=cors) as client:
                    reply = await client.post("/recommend", json=GOOD, headers={"origin": "https://shop.example"})
                    assert reply.headers.get("access-control-allow-origin") == allowed
                    reply = await client.post("/recommend", json=GOOD, headers={"origin": "https://other.example"})
                    assert "access-control-allow-origin" not in reply.headers

    run(work)


def test_logs_hold_nothing_of_a_request(repository, caplog):
    async def work():
        async with listening(StandIn()) as port, asked(repository, [port], log_requests=True) as client:
            for url, body in (("/recommend", {"history": ["SECRET"]}), ("/recommend", {"history": "SECRET"}),
                              ("/recommend/item/SECRET", None), ("/items/SECRET", None),
                              ("/items?query=SECRET", None)):  # fmt: skip
                await client.request("POST" if body else "GET", url, json=body)
            assert "SECRET" not in (await client.get("/metrics")).text

    with caplog.at_level("INFO"):
        run(work)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("llmcfsr")]
    assert any("POST /recommend 200" in line for line in ours) and not any("SECRET" in line for line in ours)


def test_the_document_describes_what_is_asked_and_answered(repository):
    async def work():
        async with asked(repository, [1]) as client:
            document = (await client.get("/openapi.json")).json()
        assert set(document["paths"]) == {"/recommend", "/recommend/item/{id}", "/items", "/items/{id}", "/health/live",
                                          "/health/ready", "/metrics"}  # fmt: skip
        schemas = document["components"]["schemas"]
        assert schemas["Question"]["properties"]["k"]["maximum"] == 50
        assert schemas["Question"]["required"] == ["history"] and not schemas["Question"]["additionalProperties"]
        text = json.dumps(document)
        assert all(
            f'"#/components/schemas/{name}"' in text for name in ("Question", "Questions", "Answer", "ProblemDetails")
        )
        assert "HTTPValidationError" not in text
        kept = json.loads((resource("schemas") / "openapi.json").read_text())
        document["info"]["version"] = kept["info"]["version"]
        # The limits of a default export; versions of FastAPI differ in what they leave unsaid.
        assert set(kept["paths"]) == set(document["paths"]) and set(kept["components"]["schemas"]) == set(schemas)

    run(work)
