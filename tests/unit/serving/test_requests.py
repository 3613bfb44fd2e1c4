"""Requests as people write them: a flat history is an error, any id can be asked for, and is shown as it is."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin import Client, Recommender
from llmcfsr_merlin.cli.item_ids import separate
from llmcfsr_merlin.cli.main import _parser, main
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.new_items import add_items
from llmcfsr_merlin.serving.steps import Encode
from tests.served import DIMENSION, write_model

IDS = ["10", "a", "b", "a,b", "-abc", "--9e1ONYQuAa", "-k5", "--run", "[/2 pack]", "[new]", ":heart:", "-", "é", "x y"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random weights whose items and one user have odd names."""
    folder = tmp_path_factory.mktemp("requests")
    write_model(folder / "train", IDS)
    (folder / "ingest" / "items").mkdir(parents=True)
    titles = {"item_id": IDS, "title": [f"Thing {raw}" for raw in IDS]}
    pq.write_table(pa.table(titles), folder / "ingest" / "items" / "part-00000.parquet")
    (folder / "prepare" / "sequences").mkdir(parents=True)
    pq.write_table(pq.read_table(folder / "train" / "vocabulary.parquet"), folder / "prepare" / "vocabulary.parquet")
    users = {"user_id": ["-u1", "--json"], "item_id": [[3, 4, 5], [6, 7, 8]]}
    pq.write_table(pa.table(users), folder / "prepare" / "sequences" / "part-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def recommender(run):
    return Recommender.load(run)


@pytest.fixture
def call(capsys):
    def run_verb(*arguments, code=0):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == code
        return capsys.readouterr()

    return run_verb


WRONG = {
    "flat": ({"histories": ["a", "b"]}, r"expected each history to be a list of ids, found 'a': one history is \[\["),
    "flat array": ({"histories": np.array(["a", "b"])}, "found .*'a'"),
    "flat series": ({"histories": pd.Series(["a", "b"])}, "found 'a'"),
    "flat integers": ({"histories": [10, 11]}, "found 10"),
    "a text": ({"histories": "a"}, "expected a list of histories, found 'a'"),
    "a mapping": ({"histories": {"u": ["a"]}}, "expected a list of histories"),
    "nothing": ({"histories": None}, "expected a list of histories, found None"),
    "one text among lists": ({"histories": [["a"], "b"]}, "found 'b'"),
    "a set": ({"histories": [{"a", "b"}]}, "expected each history to be a list"),
    "bytes": ({"histories": [b"ab"]}, "found b'ab'"),
    "nested too deeply": ({"histories": [[["a"]]]}, r"expected an id, found the list \['a'\]"),
    "allow": ({"allow": "a"}, r"expected allow to be a list of ids, found 'a': write \['a'\]"),
    "deny": ({"deny": "a"}, r"expected deny to be a list of ids, found 'a'"),
    "deny of bytes": ({"deny": b"a"}, "expected deny"),
    "allow of a number": ({"allow": 10}, "expected allow"),
    "allow nested": ({"allow": [["a"]]}, "expected an id, found the list"),
    "nothing allowed": ({"allow": []}, "expected at least one id in allow"),
    "k of a text": ({"k": "3"}, "expected k of at least 1, found '3'"),
    "k of a half": ({"k": 2.5}, "expected k of at least 1, found 2.5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused_alike_by_library_and_client(name, recommender):
    question, message = WRONG[name]
    question = {"histories": [["a"]], "k": 2, **question}
    with pytest.raises(InputError, match=message):
        recommender.answer(**question)
    client = Client("grpc://127.0.0.1:9")  # nobody listens: what is wrong is said before anybody is asked
    client._max_rows = 8
    with pytest.raises(InputError, match=message):
        client.answer(**question)


def test_histories_of_any_kind_of_list(recommender):
    expected = recommender.answer([["a", "10"]], 3).items.tolist()
    for histories in (
        [("a", 10)], np.array([["a", "10"]]), pd.Series([["a", "10"]], index=[7]), [np.array(["a", 10], object)],
        [pd.Series(["a", 10.0], dtype=object)], (row for row in [["a", " 10.0 "]]), [[b"a", np.int64(10)]],
        [[None, "a", float("nan"), "10"]],
    ):  # fmt: skip
        found = recommender.answer(histories, 3)
        assert found.items.tolist() == expected and found.unknown.tolist() == [0]
    only = recommender.answer([["a"]], 5, allow={"b", 10.0}, deny=("b",)).items[0].tolist()
    assert [raw for raw in only if raw] == ["10"]


@pytest.mark.parametrize("raw", ["10", "10.0", " 10 "])
def test_a_server_cleans_ids_as_the_library_does(run, raw):
    from llmcfsr_merlin.serving.request import Limits

    step = Encode.__new__(Encode)
    step.excludes_seen = False
    trained = Recommender.load(run)
    step.tag, step.max_length, step.limits, step.vocabulary = 1, 12, Limits(), trained.vocabulary
    tensors = {"HISTORY": [[b"a", raw.encode()]], "ALLOW": [[raw.encode()]], "DENY": [[raw.encode()]]}
    (found,) = step([{name: np.array(values, object) for name, values in tensors.items()}])
    assert found["CODES"][0, :2].tolist() == [4, 3] and found["UNKNOWN"].tolist() == [[0]]
    assert found["ALLOW_CODES"][0, 0] == found["BLOCK"][0, 0] == 3


@pytest.mark.parametrize("raw", [raw for raw in IDS if raw not in ("--run", "-k5", "-")])
def test_any_id_can_be_asked_for_and_is_shown_as_it_is(raw, run, call):
    shown = call("recommend", "--run", run, raw, "-k", 3).out
    assert f"history: Thing {raw}" in shown
    only = json.loads(call("recommend", "a", "--run", run, "--json", "--allow", raw).out)
    assert [row["item_id"] for row in only["items"]] == [raw] and only["unknown"] == 0
    left = json.loads(call("recommend", "--deny", raw, "a", "--run", run, "-k", "99", "--json").out)
    assert {row["item_id"] for row in left["items"]} == {*IDS} - {raw}


@pytest.mark.parametrize("raw", ["--run", "-k5", "-", "--9e1ONYQuAa"])
def test_ids_that_are_options_go_after_two_dashes(raw, run, call):
    assert f"history: Thing {raw}" in call("recommend", "--run", run, "-k", 3, "--", raw).out


def test_users_with_dashes(run, call):
    shown = " ".join(call("recommend", "--run", run, "--user", "-u1", "-k1").out.split())
    assert "user -u1: Thing 10; Thing a; Thing b" in shown
    assert "user --json" in call("recommend", "--run", run, "--user=--json").out


def test_several_ids_are_allowed_by_repeating_the_option_or_by_commas(run, call):
    for given, expected in (
        (["--allow", "a", "--allow", "b"], {"a", "b"}), (["--allow", "a,10"], {"a", "10"}),
        (["--allow", "a,b"], {"a,b"}), (["--allow=a,b", "--allow", "b"], {"a,b", "b"}),
    ):  # fmt: skip
        found = json.loads(call("recommend", "[new]", "--run", run, "--json", *given).out)
        assert {row["item_id"] for row in found["items"]} == expected
    shown = call("recommend", "a", "--run", run, "--json", "--allow", "a", "--allow", "zz")
    assert "--allow: 1 id(s) are unknown, first 'zz'" in shown.err
    assert "--allow: expected items that the model knows, found none, first 'zz'" in call(
        "recommend", "a", "--run", run, "--allow", "zz", code=1
    ).err  # fmt: skip


def test_an_unknown_id_with_a_dash_is_said_to_be_one(run, call):
    assert "taken as item ids, not as options: -zzz" in call("recommend", "--run", run, "-zzz", "a").err


@pytest.mark.parametrize("typo, meant", [("--exlude-seen", "--exclude-seen"), ("--exclude", "--exclude-seen"),
                                         ("--jsno", "--json"), ("--users=x", "--user")])  # fmt: skip
def test_a_misspelt_option_is_no_id(typo, meant, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["recommend", "--run", "r", typo, "a"])
    assert stopped.value.code == 2
    assert f"unrecognized argument: {typo} (did you mean {meant}?" in capsys.readouterr().err


ARGUMENTS = {
    "options first": (["--run", "r", "-x", "-k", "3"], ["--run=r", "-k3", "--", "-x"]),
    "a value that looks like an option": (["--user", "-u", "--deny", "--9e"], ["--user=-u", "--deny=--9e"]),
    "a value that is one": (["--user", "--json"], ["--user", "--json"]),
    "no value": (["a", "--user"], ["--user", "--", "a"]),
    "attached": (["-k5", "--run=r", "a"], ["-k5", "--run=r", "--", "a"]),
    "two dashes": (["a", "--", "--run", "--", "-k5"], ["--", "a", "--run", "--", "-k5"]),
    "negative numbers": (["-5", "5", "-k", "-1"], ["-k-1", "--", "-5", "5"]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_options_and_ids_are_told_apart(name):
    given, expected = ARGUMENTS[name]
    assert separate(_parser()[1]["recommend"], given) == expected


def test_new_items_get_the_ids_that_a_log_would_give_them(run, tmp_path):
    def encode(rows):
        return np.ones((len(rows), DIMENSION), np.float32)

    rows = [{"item_id": " N1 "}, {"item_id": 1001.0}, {"item_id": {"$oid": "5f"}}, {"item_id": "007"}]
    add_items(run, tmp_path / "grown", rows, encode)
    assert Recommender.load(tmp_path / "grown").vocabulary.ids[-4:].tolist() == ["N1", "1001", "5f", "007"]
    for row, message in (
        ({"item_id": "10.0"}, "1 that the model already has, first '10'"),
        ({"item_id": "NULL"}, "found 'NULL' in item 1"),
        ({"item_id": float("nan")}, "found nan in item 1"), ({"title": "x"}, "found None in item 1"),
        ({"item_id": [1]}, "found the list"), ({"item_id": "  "}, "found '  ' in item 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            add_items(run, tmp_path / "no", [row], encode)
    with pytest.raises(InputError, match="found 'n' repeated"):
        add_items(run, tmp_path / "no", [{"item_id": "n"}, {"item_id": " n"}], encode)
