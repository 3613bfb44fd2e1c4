"""Each raw format gives the interactions and items that stand in it."""

import gzip
import json

import pandas as pd
import pytest

from llmcfsr_merlin.dataset.names import ITEM, ROW, TITLE
from llmcfsr_merlin.runtime.layout import resource
from tests.unit.dataset.world import LOG, TITLES, metadata_2018, read, reviews_2018, rows, run, write


def amazon(tmp_path, reviews, metadata=(), **settings):
    paths = {"interactions": str(write(tmp_path / "reviews.json", list(reviews)))}
    if metadata:
        paths["items"] = str(write(tmp_path / "meta.json.gz", list(metadata)))
    return run(tmp_path / "out", format="amazon", **paths, **settings)


def test_amazon_2018(tmp_path):
    counts, log, items = amazon(tmp_path, reviews_2018(), metadata_2018())
    assert rows(log) == LOG
    assert log[ROW].tolist() == list(range(len(LOG)))
    assert dict(zip(items[ITEM], items[TITLE])) == TITLES
    first = items.set_index(ITEM).loc["A1"]
    assert list(first["categories"]) == ["Beauty", "Lips"]
    assert (first["brand"], first["price"], list(first["features"])) == ("Aurora", "$5.00", ["Soft"])
    assert list(first["description"]) == ["For <b>lips</b>"], "prompts clean the other attributes, once"
    second = items.set_index(ITEM).loc["A2"]
    assert second["brand"] is None and second["categories"] is None
    assert counts["duplicates_kept"] == 1
    assert (counts["items_with_metadata"], counts["items_without_metadata"]) == (2, 1)
    assert (counts["metadata_not_in_log"], counts["metadata_repeated"]) == (1, 1)


def test_amazon_2014_metadata_are_python_literals(tmp_path):
    record = {"asin": "A1", "title": "It's \"new\"", "categories": [["CDs", "Pop"], ["CDs", "Rock"]], "price": 9.49,
              "related": {"also_bought": ["B"]}}  # fmt: skip
    counts, _, items = amazon(
        tmp_path, reviews_2018(), [repr(record), "{'asin': 'A2', 'title': u'Caf\\xe9'}", "{'asin"]
    )
    items = items.set_index(ITEM)
    assert items.loc["A1", TITLE] == 'It\'s "new"' and items.loc["A2", TITLE] == "Café"
    assert list(items.loc["A1", "categories"]) == ["CDs", "Pop", "Rock"]
    assert items.loc["A1", "price"] == "9.49"
    assert counts["metadata_bad_lines"] == 1


def test_amazon_2023(tmp_path):
    """Milliseconds, and the parent's id: metadata list no variants."""
    reviews = [
        json.dumps({"rating": r, "user_id": u, "asin": f"{i}-red", "parent_asin": i, "timestamp": t * 1000 + 7})
        for u, i, t, r in LOG
    ]
    meta = [json.dumps({"parent_asin": "A1", "title": "Balm", "store": "Aurora", "main_category": "All Beauty",
                        "categories": [], "features": ["Soft"], "price": 5.0, "details": {"Brand": "x"}})]  # fmt: skip
    _, log, items = amazon(tmp_path, reviews, meta)
    assert rows(log) == LOG
    first = items.set_index(ITEM).loc["A1"]
    assert (first[TITLE], first["brand"], list(first["categories"])) == ("Balm", "Aurora", ["All Beauty"])


def test_review_dates_where_there_is_no_unix_time(tmp_path):
    lines = [json.dumps({"reviewerID": "u", "asin": "A1", "reviewTime": "09 4, 2015"})]
    _, log, _ = amazon(tmp_path, lines)
    assert log["timestamp"].tolist() == [1_441_324_800]


@pytest.mark.parametrize("categories", ["Bars, Wine Bars", ["Bars", "Wine Bars"]])
def test_yelp(tmp_path, categories):
    reviews = [{"review_id": "1", "user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-08-23 22:28:46"},
               {"review_id": "2", "user_id": "v", "business_id": "b", "stars": 5, "date": "2012-01-01"}]  # fmt: skip
    business = {"business_id": "b", "name": "Al's", "city": "Reno", "state": "NV", "stars": 4.5, "review_count": 7,
                "attributes": {"WiFi": "u'free'", "Caters": "False", "Ambience": "{'casual': True, 'hipster': False}"},
                "categories": categories, "is_open": 1, "hours": None}  # fmt: skip
    _, log, items = run(
        tmp_path / "out",
        format="yelp",
        interactions=str(write(tmp_path / "review.json", list(map(json.dumps, reviews)))),
        items=str(write(tmp_path / "business.json", [json.dumps(business)])),
    )
    assert rows(log) == [("u", "b", 1_535_063_326, 4.0), ("v", "b", 1_325_376_000, 5.0)]
    row = items.iloc[0]
    assert (row[TITLE], row["city"], row["stars"], row["is_open"]) == ("Al's", "Reno", "4.5", "1")
    assert list(row["categories"]) == ["Bars", "Wine Bars"]
    assert list(row["attributes"]) == ["Wi Fi: free", "Ambience: casual"]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv.gz", "log.parquet", "log.jsonl", "log.data"])
def test_any_table(tmp_path, name):
    """CSV, TSV, Parquet and JSON lines with the same rows give the same; names of files say nothing."""
    frame = pd.DataFrame(LOG, columns=["who", "what", "when", "stars"])
    path = tmp_path / name
    if name == "log.parquet":
        frame.to_parquet(path, row_group_size=2)
    elif name == "log.jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif name == "log.data":
        path.write_bytes(gzip.compress(frame.to_csv(sep=";", index=False).encode()))
    else:
        frame.to_csv(path, sep="\t" if ".tsv" in name else ",", index=False)
    columns = {"user": "who", "item": "what", "time": "when", "rating": "stars"}
    _, log, items = run(tmp_path / "out", interactions=str(path), columns=columns)
    assert rows(log) == LOG
    assert items[ITEM].tolist() == ["A1", "A2", "A3"] and items[TITLE].isna().all()


@pytest.mark.parametrize("settings", [{}, {"columns": {"names": ["user_id", "item_id"], "time": None}}])
def test_headerless_file_in_time_order(tmp_path, settings):
    path = write(tmp_path / "inter.txt.gz", ["1 7", "1 8", "2 7"], end="")
    _, log, _ = run(tmp_path / "out", interactions=str(path), **settings)
    assert log[["user_id", "item_id", "timestamp"]].values.tolist() == [["1", "7", 0], ["1", "8", 1], ["2", "7", 2]]


def test_order_where_there_is_no_time(tmp_path):
    path = write(tmp_path / "log.csv", ["user_id,item_id,order", "u,a,1", "u,b,0"])
    _, log, _ = run(tmp_path / "out", interactions=str(path))
    assert log["timestamp"].tolist() == [1, 0] and log["rating"].isna().all()


def test_csv_with_quotes_commas_and_newlines_in_a_field(tmp_path):
    """A review column may hold anything; blocks of 64 bytes cut in the middle of it."""
    text = ['"a, ""b""\n\nc"', "plain", '"\n"', "x"]
    lines = ["user_id,text,item_id,timestamp"] + [f"u{n},{text[n % 4]},i{n % 7},{n + 1}" for n in range(50)]
    _, log, _ = run(tmp_path / "out", block=64, interactions=str(write(tmp_path / "log.csv", lines)))
    assert log["user_id"].tolist() == [f"u{n}" for n in range(50)]
    assert log[ROW].is_monotonic_increasing


def test_items_of_any_table(tmp_path):
    log = write(tmp_path / "log.csv", ["user_id,item_id,timestamp", "u,a,1", "u,b,2", "u,c,3"])
    lines = ['{"item_id": "a", "title": "A", "tags": ["x", "y"], "weight": 2.0}', '{"item_id": "b", "tags": "z"}']
    _, _, items = run(tmp_path / "out", interactions=str(log), items=str(write(tmp_path / "items.jsonl", lines)))
    assert list(items.columns) == [ITEM, TITLE, "tags", "weight"]
    assert [None if tags is None else list(tags) for tags in items["tags"]] == [["x", "y"], ["z"], None]
    assert items["weight"].tolist()[0] == "2"


def test_items_in_csv_and_parquet_are_the_same(tmp_path):
    log = write(tmp_path / "log.csv", ["user_id,item_id,timestamp", "u,a,1", "u,b,2"])
    frame = pd.DataFrame({"item_id": ["b", "a"], "title": ['B, the "second"', "A\nA"], "year": [1999, 2001]})
    frame.to_csv(tmp_path / "items.csv", index=False)
    frame.to_parquet(tmp_path / "items.parquet")
    found = [
        run(tmp_path / kind, interactions=str(log), items=str(tmp_path / f"items.{kind}"))[2]
        for kind in ("csv", "parquet")
    ]
    pd.testing.assert_frame_equal(*found)
    assert found[0].values.tolist() == [["b", 'B, the "second"', "1999"], ["a", "A A", "2001"]]


def test_several_files_by_pattern(tmp_path):
    """Of different years, in name order; ROW goes on from file to file."""
    write(tmp_path / "r1.json", reviews_2018()[:2], end="")
    later = [json.dumps({"user_id": u, "parent_asin": i, "timestamp": t * 1000, "rating": r}) for u, i, t, r in LOG[2:]]
    write(tmp_path / "r2.json.gz", later)
    _, log, _ = run(tmp_path / "out", format="amazon", interactions=str(tmp_path / "r*.json*"))
    assert rows(log) == LOG
    assert log[ROW].tolist() == list(range(5))


def test_integer_ids_and_byte_order_mark(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"user_id": 7, "item_id": 1, "timestamp": 5}\r\n'
        b'{"user_id": "7", "item_id": 2.0, "timestamp": "6"}'
    )
    _, log, _ = run(tmp_path / "out", interactions=str(path))
    assert log[["user_id", "item_id", "timestamp"]].values.tolist() == [["7", "1", 5], ["7", "2", 6]]


def test_output_agrees_with_the_schemas(tmp_path):
    """schemas/*.pbtxt say what ingest writes: names and types."""
    read_schema = pytest.importorskip("llmcfsr_merlin.dataset.prepare.nvtabular_adapter").read_schema
    amazon(tmp_path, reviews_2018(), metadata_2018())
    written = dict(zip(("interactions", "items"), read(tmp_path / "out")))
    for name, frame in written.items():
        schema = read_schema(resource("schemas") / f"{name}.pbtxt")
        assert set(schema.column_names) <= set(frame.columns)
        if name == "interactions":
            assert schema.column_names == list(frame.columns)
        for column in schema:
            kind = column.dtype.to_numpy.name.replace("str", "object")
            assert frame[column.name].dtype.name == kind, (name, column.name)
