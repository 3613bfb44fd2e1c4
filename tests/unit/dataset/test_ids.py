"""One rule for ids: in logs of any format, in metadata, in requests and for new items."""

import json
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcfsr_merlin.config.data_settings import NULL_VALUES
from llmcfsr_merlin.dataset.names import ITEM, TITLE, USER
from llmcfsr_merlin.dataset.raw.fields.ids import NotAnId, clean_id, clean_ids
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.request import Limits, parse
from tests.unit.dataset.world import run, write

OID = "5f43a8c2e1b2c3d4e5f60718"
IDS = [
    # what is given, and the id that it is
    ("a", "a"), (" a ", "a"), ("\ufeffa\u00a0", "a"), ("A", "A"), ("", None), ("  ", None), (None, None),
    (10, "10"), (10.0, "10"), ("10.0", "10"), ("10", "10"), ("-3.0", "-3"), (np.int64(10), "10"),
    (np.float32(10), "10"), (Decimal("10.00"), "10"), ("1.10", "1.10"), ("1.0.0", "1.0.0"), ("10.00", "10.00"),
    ("007", "007"), ("007.0", "007.0"),
    (1.5, "1.5"), (1e16, "10000000000000000"), ("1.5E7", "15000000"), ("1e5", "1e5"), ("12E4", "12E4"),
    (float("nan"), None), (np.nan, None), (pd.NA, None), (pd.NaT, None), (np.str_("a"), "a"), (b"a", "a"),
    (b"\xff\x00", "ff00"),
    ({"$oid": OID}, OID), ({"$numberLong": "7"}, "7"), (f'{{"$oid": "{OID}"}}', OID), (f"ObjectId({OID})", OID),
    ("[new]", "[new]"), ("{x}", "{x}"), ("[/2 pack]", "[/2 pack]"), ("a,b", "a,b"), ("-abc", "-abc"), ("NA", "NA"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
]  # fmt: skip
NO_IDS = [[1, 2], ("a",), {"a": 1}, {"a"}, np.array([1, 2]), "[1, 2]", '{"a": "b"}', '["a"]']


@pytest.mark.parametrize("given, expected", IDS, ids=lambda value: repr(value)[:20])
def test_an_id_is_the_same_from_a_log_and_in_a_request(given, expected):
    assert clean_id(given) == expected
    vocabulary = Vocabulary(["zzz", expected or "other"])
    assert vocabulary.encode([given]) == [4 if expected else 0]
    if isinstance(given, (str, bytes)) and given:
        raw = given if isinstance(given, bytes) else given.encode()
        (row,) = parse({"HISTORY": np.array([[raw]], object)}, Limits())
        assert vocabulary.encode(row.history) == [4 if expected else 0]


@pytest.mark.parametrize("given", NO_IDS, ids=repr)
def test_lists_and_objects_are_no_ids(given):
    with pytest.raises(NotAnId, match="expected an id, found the"):
        clean_id(given)
    with pytest.raises(InputError, match="a history is a list of item ids"):
        Vocabulary(["a"]).encode([given])


TEXTS = st.one_of(
    st.text(max_size=6), st.from_regex(r"-?[0-9]{1,4}\.0", fullmatch=True), st.from_regex(r"[\[{]\"?[0-9a]*\"?[\]}]"),
    st.from_regex(r"\s?[1-9]\.[0-9]{1,3}E[0-9]\s?", fullmatch=True),
)  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), TEXTS.filter(lambda text: text.isascii() or text.encode("utf-8", "replace"))), max_size=8
    )
)
def test_a_column_is_cleaned_as_its_values_are(texts):
    texts = [None if text is None else text.encode("utf-8", "replace").decode() for text in texts]
    found = clean_ids(pa.chunked_array([pa.array(texts, pa.string())]))
    expected = []
    for text in texts:
        try:
            expected.append(clean_id(text))
        except NotAnId:
            expected.append("nested")
    nested = [False] * len(texts) if found.nested is None else found.nested.to_pylist()
    assert ["nested" if no_id else text for no_id, text in zip(nested, found.texts.to_pylist())] == expected


@pytest.mark.parametrize("texts", [[1.0, 2.0, None], [1.0, 2.5, None, float("nan"), 1e300, float("inf")]])
def test_a_column_of_floats_is_cleaned_as_its_values_are(texts):
    found = clean_ids(pa.chunked_array([pa.array(texts, pa.float64())]))
    finite = [None if text is None or abs(text) == float("inf") else text for text in texts]
    assert found.texts.to_pylist() == [clean_id(text) for text in finite]


def log(tmp_path, users, name="log.csv"):
    lines = ["user_id,item_id,timestamp"] + [f"{user},i{n},{1_500_000_000 + n}" for n, user in enumerate(users)]
    return str(write(tmp_path / name, lines))


def test_null_values_are_no_users(tmp_path):
    path = log(tmp_path, ["u1", *NULL_VALUES, " NULL ", "", "NA", "none", "Null Island"])
    counts, found, _ = run(tmp_path / "out", interactions=path)
    assert found[USER].tolist() == ["u1", "NA", "none", "Null Island"]
    assert counts["no_user"] == len(NULL_VALUES) + 2
    _, found, _ = run(tmp_path / "own", interactions=path, null_values=["NA"])
    assert "NULL" in found[USER].tolist() and "NA" not in found[USER].tolist()


def test_users_of_json_that_are_none(tmp_path):
    users = ['"u"', "NaN", "null", '"null"', '""', json.dumps({"$oid": OID}), "[1]", '{"a": 1}', "7", "7.0"]
    lines = [f'{{"user_id": {user}, "item_id": "i", "timestamp": 1500000000}}' for user in users]
    counts, found, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log.jsonl", lines)))
    assert found[USER].tolist() == ["u", OID, "7", "7"]
    assert (counts["no_user"], counts["nested_user"], counts["rows_read"]) == (4, 2, 10)


def test_parquet_ids_of_any_type_and_inexact_ones(tmp_path, capsys):
    columns = {
        "float": pa.array([1.0, None, 2.0]), "bytes": pa.array([b"1", b"\xff", b"2"]), "int": pa.array([1, None, 2]),
        "category": pa.array(["1", None, "2"]).dictionary_encode(),
        "decimal": pa.array([Decimal(1), None, Decimal(2)]),
    }  # fmt: skip
    for name, items in columns.items():
        frame = pa.table({"user_id": ["u"] * 3, "item_id": items, "timestamp": [1_500_000_000] * 3})
        pq.write_table(frame, tmp_path / name)
        _, found, _ = run(tmp_path / f"{name}.out", interactions=str(tmp_path / name))
        assert found[ITEM].tolist() == (["1", "ff", "2"] if name == "bytes" else ["1", "2"]), name
    pq.write_table(frame.set_column(1, "item_id", pa.array([2.0**53, 2.0**60, 1.0])), tmp_path / "big")
    counts, found, _ = run(tmp_path / "big.out", interactions=str(tmp_path / "big"))
    assert counts["inexact_ids"] == 2 and found[ITEM].tolist() == [str(2**53), str(2**60), "1"]
    assert "floats above 2**53" in capsys.readouterr().err


def items(tmp_path, rows, name="items.jsonl"):
    return str(write(tmp_path / name, [json.dumps(row) for row in rows]))


def test_ids_join_however_they_are_written(tmp_path):
    lines = ["user_id,item_id,timestamp", "1.0,10.0,1500000000", "1, 11 ,1500000000", "2.0,12,1500000000"]
    rows = [
        {"item_id": 10, "title": "ten"},
        {"item_id": "11.0", "title": "eleven"},
        {"item_id": 12.0, "title": "twelve"},
    ]
    counts, found, table = run(
        tmp_path / "out", interactions=str(write(tmp_path / "log", lines)), items=items(tmp_path, rows)
    )
    assert found[USER].tolist() == ["1", "1", "2"]
    assert dict(zip(table[ITEM], table[TITLE])) == {"10": "ten", "11": "eleven", "12": "twelve"}
    assert (counts["items_with_metadata"], counts["ids_from_floats"]) == (3, 3)


def test_all_rows_of_an_item_make_its_metadata(tmp_path):
    """The first value of each attribute, also from another file; repeats are counted."""
    first = [{"item_id": "i0"}, {"item_id": "i1", "title": "b", "brand": "NULL"}, {"item_id": "i0", "title": "full"},
             {"item_id": "i1", "title": "other", "tags": ["x"]}, {"item_id": "gone", "title": "never"},
             {"item_id": None}, {"item_id": [1]}]  # fmt: skip
    second = [{"item_id": "i1", "brand": "Aurora"}, {"item_id": " i2 ", "title": "c"}]
    paths = [items(tmp_path, first), items(tmp_path, second, "more.jsonl")]
    counts, _, table = run(tmp_path / "out", interactions=log(tmp_path, "uuuu"), items=paths)
    rows = table.set_index(ITEM)
    assert rows[TITLE].to_dict() == {"i0": "full", "i1": "b", "i2": "c", "i3": None}
    assert (rows.loc["i1", "brand"], list(rows.loc["i1", "tags"])) == ("Aurora", ["x"])
    assert (counts["metadata_repeated"], counts["metadata_not_in_log"]) == (3, 1)
    assert (counts["metadata_no_item"], counts["metadata_nested_item"], counts["items_with_metadata"]) == (1, 1, 3)


def test_many_repeated_rows_are_merged_in_shares(tmp_path, monkeypatch):
    from llmcfsr_merlin.dataset.raw import metadata as module

    monkeypatch.setattr(module, "_ROWS", 3)
    rows = [{"item_id": f"i{n % 7}", **({"title": f"t{n}"} if n > 6 else {"brand": f"b{n}"})} for n in range(40)]
    _, _, table = run(tmp_path / "out", interactions=log(tmp_path, "u" * 8), items=items(tmp_path, rows))
    rows = table.set_index(ITEM)
    assert rows[TITLE].to_dict() == {**{f"i{n}": f"t{n + 7}" for n in range(7)}, "i7": None}
    assert [rows.loc[f"i{n}", "brand"] for n in range(7)] == [f"b{n}" for n in range(7)]


def test_a_warning_with_examples_where_nothing_joins(tmp_path, capsys):
    rows = [{"item_id": f"sku-{n}", "title": "x"} for n in range(9)]
    counts, *_ = run(tmp_path / "out", interactions=log(tmp_path, "uuuu"), items=items(tmp_path, rows))
    assert counts["items_with_metadata"] == 0
    shown = capsys.readouterr().err
    assert "metadata was found for 0 of 4 items" in shown
    assert "'sku-0'" in shown and "'i0'" in shown
    run(tmp_path / "good", interactions=log(tmp_path, "uuuu"), items=items(tmp_path, [{"item_id": "i1", "title": "x"}]))
    assert "metadata was found" not in capsys.readouterr().err
