"""The gateway's parts, each alone: slots, rates, keys, the cache, problem details, item tables, tensors."""

import asyncio
import contextlib
import os

import numpy as np
import pyarrow as pa
import pytest

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.serving import gateway_server
from llmcfsr_merlin.serving.bundle import Bundle
from llmcfsr_merlin.serving.item_table import TABLE, ItemTable, titles_of, write_items, write_titles
from llmcfsr_merlin.serving.new_items import add_items
from llmcfsr_merlin.serving.repository import EXPLAIN, FRONT, export, newest_items, publish, served

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
from llmcfsr_merlin.serving.gateway import connections
from llmcfsr_merlin.serving.gateway.answer_cache import AnswerCache
from llmcfsr_merlin.serving.gateway.keys import Keys, check_exposure, sent_key
from llmcfsr_merlin.serving.gateway.models import question_models, read
from llmcfsr_merlin.serving.gateway.problems import KINDS, Problem
from llmcfsr_merlin.serving.gateway.rates import Rates
from llmcfsr_merlin.serving.gateway.slots import Slots
from llmcfsr_merlin.serving.gateway.tensors import Row, kind, message
from tests.gateways import texts
from tests.served import DIMENSION, IDS, write_model

ROW = Row(["a", "b"], 3, False, None, [], False)


def test_slots_are_held_in_order_and_the_queue_is_bounded():
    async def work():
        slots, order = Slots(2, 2), []

        async def hold(name):
            await slots.take(5)
            order.append(name)
            await asyncio.sleep(0.01)
            slots.give()

        tasks = [asyncio.create_task(hold(name)) for name in "abcd"]
        await asyncio.sleep(0)
        assert (slots.held, slots.waiting) == (2, 2)
        with pytest.raises(Problem) as refused:
            await slots.take(5)
        assert refused.value.status == 503 and refused.value.headers["retry-after"]
        await asyncio.gather(*tasks)
        assert order == list("abcd") and (slots.held, slots.waiting) == (0, 0)

    asyncio.run(work())


def test_who_waits_too_long_or_goes_away_leaves_the_queue():
    async def work():
        slots = Slots(1, 5)
        await slots.take(1)
        with pytest.raises(Problem, match="timeout"):
            await slots.take(0.01)
        gone = asyncio.create_task(slots.take(5))
        stays = asyncio.create_task(slots.take(5))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert slots.waiting == 1
        slots.give()
        stays_too = asyncio.create_task(slots.take(5))
        await stays
        slots.give()
        stays_too.cancel()  # its turn has come: it must pass it on
        await asyncio.gather(stays_too, return_exceptions=True)
        assert (slots.held, slots.waiting) == (0, 0)

    asyncio.run(work())


def test_a_rate_is_of_each_caller():
    now = [0.0]
    rates = Rates(2.0, lambda: now[0])
    for _ in range(4):  # twice the rate at once
        rates.take("a")
    with pytest.raises(Problem) as refused:
        rates.take("a")
    assert refused.value.status == 429 and refused.value.headers["retry-after"] == "1"
    rates.take("b")
    now[0] = 0.5
    rates.take("a")
    with pytest.raises(Problem):
        rates.take("a")
    now[0] = 100.0
    rates.take("a", 50)  # more than a bucket holds: let through from a full one, and paid
    now[0] = 110.0
    with pytest.raises(Problem):
        rates.take("a")
    Rates(0.0).take("a", 10**9)


def test_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the shop\nshop 0123456789abcdef\n\ntests: fedcba9876543210\n")
    path.chmod(0o600)
    keys = Keys(path)
    assert (keys.name(b"0123456789abcdef"), keys.name(b"fedcba9876543210")) == ("shop", "tests")
    for wrong in (b"", b"0123456789abcde", b"0123456789abcdef0", b"shop", "é".encode()):
        assert keys.name(wrong) is None
    path.write_text("other 0000000000000000\n")
    os.utime(path, (1, 1))
    keys.refresh()
    assert keys.name(b"0123456789abcdef") is None and keys.name(b"0" * 16) == "other"
    for text, said in (("shop short\n", "line 1"), ("", "at least one"), ("one two three\n", "line 1")):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            Keys(path)
    path.write_text("shop 0123456789abcdef\n")
    path.chmod(0o604)
    with pytest.raises(InputError, match="chmod"):
        Keys(path)
    with pytest.raises(InputError, match="cannot be read"):
        Keys(tmp_path / "none")


def test_what_is_wrong_with_the_keys_is_said_once_per_change_and_the_keys_of_before_stay(tmp_path):
    path = tmp_path / "keys"
    path.write_text("shop 0123456789abcdef\n")
    path.chmod(0o600)
    keys = Keys(path)
    path.chmod(0o604)  # its content and its time stay
    for said in ("chmod", None):
        with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
            keys.refresh()
    path.unlink()
    for said in ("cannot be read", None):
        with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
            keys.refresh()
    assert keys.name(b"0123456789abcdef") == "shop"
    path.write_text("short a\n")
    path.chmod(0o600)
    with pytest.raises(InputError, match="line 1"):
        keys.refresh()
    path.write_text("other 0000000000000000\n")
    keys.refresh()
    assert keys.name(b"0" * 16) == "other" and keys.name(b"0123456789abcdef") is None


@pytest.mark.parametrize(
    "headers, key",
    [([(b"authorization", b"Bearer abc")], b"abc"), ([(b"authorization", b"bearer  abc ")], b"abc"),
     ([(b"x-api-key", b"abc")], b"abc"), ([(b"authorization", b"Basic abc")], None), ([], None)],
)  # fmt: skip
def test_a_key_is_sent_by_two_headers(headers, key):
    assert sent_key(headers) == key


@pytest.mark.parametrize("host, loopback", [("127.0.0.1", True), ("localhost", True), ("127.3.2.1", True),
                                            ("0.0.0.0", False), ("", False), ("10.0.0.1", False)])  # fmt: skip
def test_beyond_loopback_keys_are_needed(host, loopback):
    check_exposure(host, "keys", False)
    check_exposure(host, None, True)
    if loopback:
        check_exposure(host, None, False)
    else:
        with pytest.raises(InputError, match=r"--api-keys.*--no-api-keys"):
            check_exposure(host, None, False)


def test_the_cache_forgets_by_age_size_and_version():
    now = [0.0]
    cache = AnswerCache(2, 10.0, lambda: now[0])
    rows = [ROW._replace(k=k) for k in (1, 2, 3)]
    for row in rows:
        cache.put(row, {"model_version": "v1", "k": row.k})
    assert cache.get(rows[0], {"v1"}) is None and len(cache) == 2
    assert cache.get(rows[2], {"v1", "v0"})["k"] == 3
    assert cache.get(rows[2], {"v2"}) is None
    for other in (ROW._replace(history=["b", "a"], k=3), rows[2]._replace(exclude_seen=True),
                  rows[2]._replace(exclude_seen=None), rows[2]._replace(allow=["a"]), rows[2]._replace(deny=["a"]),
                  rows[2]._replace(explain=True)):  # fmt: skip
        assert cache.get(other, {"v1"}) is None
    now[0] = 10.5
    assert cache.get(rows[2], {"v1"}) is None
    none = AnswerCache(0, 10.0)
    none.put(ROW, {"model_version": "v1"})
    assert none.get(ROW, {"v1"}) is None and len(none) == 0


LIMITS = GatewayConfig(max_history=3, max_list=2, max_id_length=5, max_users=2)
WRONG = {
    "no object": ([], "body"), "a text": ("x", "body"), "none": (None, "body"), "no history": ({}, "history"),
    "a text for a list": ({"history": "abc"}, "history"), "null": ({"history": None}, "history"),
    "nested": ({"history": [["a"]]}, "history[0]"), "an object": ({"history": [{"id": "a"}]}, "history[0]"),
    "null id": ({"history": ["a", None]}, "history[1]"), "true": ({"history": [True]}, "history[0]"),
    "a fraction": ({"history": [1.5]}, "history[0]"), "beyond int64": ({"history": [2**63]}, "history[0]"),
    "a number of no end": ({"history": [1e300]}, "history[0]"), "empty id": ({"history": [""]}, "history[0]"),
    "long id": ({"history": ["a" * 6]}, "history[0]"), "long history": ({"history": ["a"] * 4}, "history"),
    "k 0": ({"history": [], "k": 0}, "k"), "k large": ({"history": [], "k": 11}, "k"),
    "k text": ({"history": [], "k": "3"}, "k"), "k fraction": ({"history": [], "k": 3.5}, "k"),
    "k true": ({"history": [], "k": True}, "k"), "empty allow": ({"history": [], "allow": []}, "allow"),
    "long allow": ({"history": [], "allow": ["a"] * 3}, "allow"),
    "long deny": ({"history": [], "deny": ["a"] * 3}, "deny"),
    "seen text": ({"history": [], "exclude_seen": "yes"}, "exclude_seen"),
    "more": ({"history": [], "colour": 1}, "colour"),
    "many fields": ({f"f{i}": 1 for i in range(99)}, "body"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(name):
    value, field = WRONG[name]
    with pytest.raises(Problem) as refused:
        read(question_models(LIMITS, 10)[0], value)
    assert refused.value.status == 422 and field in refused.value.body().decode()


def test_a_good_question_is_read_and_many_are_named_by_place():
    question, questions = question_models(LIMITS, 10)
    asked = read(question, {"history": ["a", 12, "é"], "k": 10.0, "allow": ["b"], "deny": None})
    assert (asked.history, asked.k, asked.allow, asked.deny, asked.explain) == (
        ["a", "12", "é"],
        10,
        ["b"],
        None,
        False,
    )
    with pytest.raises(Problem, match=r"users\[1\].history\[0\]"):
        read(questions, {"users": [{"history": []}, {"history": [None]}]})
    for users in ([], [{"history": []}] * 3):
        with pytest.raises(Problem, match="users"):
            read(questions, {"users": users})


def test_problems_are_of_rfc_9457():
    for name, (status, title) in KINDS.items():
        response = Problem(name, "why").response()
        assert (response.status_code, response.media_type) == (status, "application/problem+json")
        assert title.encode() in response.body and f"urn:llmcfsr:problem:{name}".encode() in response.body


def test_rows_of_different_lengths_become_one_message():
    rows = [ROW, ROW._replace(history=[], k=5), ROW._replace(history=["é" * 3, "", "x"], exclude_seen=True)]
    made = message(rows)
    sent = {one.name: (list(one.shape), raw) for one, raw in zip(made.inputs, made.raw_input_contents)}
    assert texts(sent["HISTORY"][1], 3) == [[b"a", b"b", b""], [b"", b"", b""], ["é".encode() * 3, b"", b"x"]]
    assert sent["HISTORY"][0] == [3, 3] and np.frombuffer(sent["TOP_K"][1], "<i4").tolist() == [3, 5, 3]
    assert sent["EXCLUDE_SEEN"][1] == b"\0\0\1" and set(sent) == {"HISTORY", "TOP_K", "EXCLUDE_SEEN"}
    silent = message([row._replace(exclude_seen=None) for row in rows])
    assert {one.name for one in silent.inputs} == {"HISTORY", "TOP_K"}
    assert kind(ROW) != kind(ROW._replace(exclude_seen=None)), "who says nothing is asked apart from who does"
    assert message([ROW._replace(explain=True)]).model_name == EXPLAIN
    by_input = message([ROW._replace(explain=True)] * 2, explains=FRONT)
    assert by_input.model_name == FRONT and by_input.raw_input_contents[0] == b"\1\1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("run") / "train")
    write_titles(folder, {"B001": "Dead Sea Shampoo", "B003": "shampoo, dry", "B009": "Soap & <Öl>"})
    seal(folder, "train", "key", {})
    return folder


def test_the_item_table_says_what_is_popular_as_the_model_does(trained, tmp_path):
    write_items(tmp_path, Bundle.open(trained))
    table = ItemTable(tmp_path)
    offline = Recommender.load(trained).answer([[]], 60)
    popular = table.popular(60)
    assert [raw for raw, _ in popular] == offline.items[0].tolist()
    assert [np.float32(share) for _, share in popular] == offline.scores[0].tolist()
    some = ["B007", "zzz", " B002 ", "B007"]
    offline = Recommender.load(trained).answer([[]], 5, allow=some, deny=["B002"])
    assert [raw for raw, _ in table.popular(5, ["B002"], some)] == [raw for raw in offline.items[0] if raw]


def test_the_item_table_finds_ids_and_titles(trained, tmp_path):
    write_items(tmp_path, Bundle.open(trained))
    table = ItemTable(tmp_path)
    assert len(table) == len(IDS) and all(table.item(table.find(raw))["id"] == raw for raw in IDS)
    assert table.find(" B001\n") == table.find("B001") and table.find("zzz") is None and table.find("") is None
    assert [item["id"] for item in table.search("SHAMPOO", 9)] == ["B001", "B003"]
    assert [item["id"] for item in table.search("öl", 9)] == ["B009"] and table.search(".*", 9) == []
    assert [item["id"] for item in table.search("B005", 9)] == ["B005"]
    assert table.title("B003") == "shampoo, dry" and table.title("B004") is None and table.title("zzz") is None


def test_a_changed_or_missing_item_table_is_refused(trained, tmp_path):
    write_items(tmp_path, Bundle.open(trained))
    raw = (tmp_path / TABLE).read_bytes()
    (tmp_path / TABLE).write_bytes(raw[:-9] + b"x" + raw[-8:])
    with pytest.raises(InputError, match="sha256"):
        ItemTable(tmp_path)
    with pytest.raises(InputError, match="export anew"):
        ItemTable(tmp_path / "none")


def test_titles_come_from_the_run_and_grow_with_new_items(trained, tmp_path):
    run = write_model(tmp_path / "run" / "train").parent
    items = run / "ingest" / "items"
    items.mkdir(parents=True)
    table = pa.table({"item_id": ["B001", "B002"], "title": ["A &amp; B", None]})
    pa.parquet.write_table(table, items / "part-0.parquet")
    assert titles_of(run / "train") == {"B001": "A & B"}
    rows = [{"item_id": "N1", "title": "new <b>one</b>"}, {"item_id": "N2"}]
    vectors = np.ones((2, DIMENSION), np.float32)
    add_items(run, tmp_path / "grown", rows, lambda _: vectors)
    assert titles_of(tmp_path / "grown") == {"B001": "A & B", "N1": "new one"}


@pytest.mark.parametrize("layout", ["ensemble", "merged"])
def test_every_version_of_a_repository_has_its_items(trained, tmp_path, layout):
    serve = ServeConfig(layout=layout, max_top_k=33, max_batch_size=7, shortlist=20)
    export(trained, tmp_path / "repo", serve)
    first = ItemTable(newest_items(tmp_path / "repo"))
    assert first.version == f"{Bundle.open(trained).tag:015x}" and first.title("B003")
    found = served(tmp_path / "repo")
    assert (found.max_rows, found.max_top_k, found.shortlist) == (7, 33, 20)
    assert found.explains == (EXPLAIN if layout == "ensemble" else FRONT)
    publish(write_model(tmp_path / "other", seed=1), tmp_path / "repo", serve)
    second = ItemTable(newest_items(tmp_path / "repo"))
    assert second.version != first.version and not second.titled


def test_a_missing_extra_is_told_in_one_line(monkeypatch):
    gateway_server.check_installed()
    monkeypatch.setattr(gateway_server.importlib.util, "find_spec", lambda name: None if name == "uvloop" else name)
    with pytest.raises(MissingDependency, match=r"needs uvloop: pip install 'llmcfsr-merlin\[gateway\]'.*--no-gateway"):
        gateway_server.check_installed()


class Slow:
    """A connection that waits since a moment."""

    def __init__(self, since: float):
        self.waiting_since, self.flow, self.closed = since, None, False

    def close_slow(self) -> None:
        self.closed = True


def test_time_in_which_the_gateway_could_not_run_is_no_clients(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    sweep, slow, new = connections.Sweep(5.0), Slow(96.0), Slow(99.9)
    sweep([slow, new])
    now[0] = 110.0  # ten seconds instead of one
    sweep([slow, new])
    assert not slow.closed and not new.closed
    now[0] = 111.2
    sweep([slow, new])
    assert slow.closed and not new.closed
