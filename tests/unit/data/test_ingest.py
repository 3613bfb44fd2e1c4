"""Ingest: known counts of real files, quirks, damage, hostile input; the same result for any workers and block size."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llmcfsr_merlin.pipelines import ingest as stage

from llmcfsr_merlin.config import Config, DataConfig
from llmcfsr_merlin.contract import INTERACTIONS, ITEM, ITEMS, RATING, ROW, TIME, USER
from llmcfsr_merlin.data import logs
from llmcfsr_merlin.data.ingest import ingest
from llmcfsr_merlin.data.synthetic import write_amazon
from llmcfsr_merlin.errors import InputError

DATA = Path(os.environ.get("LLMCFSR_DATA", Path(__file__).parents[4] / "shared" / "data"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not found in {DATA} (LLMCFSR_DATA)")


def read(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tuple(pq.read_table(out / name).to_pandas() for name in (INTERACTIONS, ITEMS))


def run(out: Path, *, workers: int = 1, block: int = 1 << 20, **data):
    data = {key: tuple(map(str, value)) if key in ("interactions", "items") else value for key, value in data.items()}
    counts = ingest(DataConfig(**data), out, workers=workers, block=block)
    return counts, *read(out)


def write(path: Path, text: str | bytes, packed: bool = False) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def review(user="u1", item="i1", time=1500000000, rating=5.0, **more) -> str:
    return json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": rating, **more}) + "\n"


@real_data
@pytest.mark.parametrize(
    ("folder", "file", "users", "items", "rows", "repeated"),
    [
        ("raw_amazon2018_gift_cards", "Gift_Cards_5.json.gz", 458, 148, 2972, 3),
        ("raw_amazon2018_fashion", "AMAZON_FASHION_5.json.gz", 406, 31, 3176, 111),
        ("raw_amazon2018_all_beauty", "All_Beauty_5.json.gz", 991, 85, 5269, 1108),
    ],
)
def test_known_counts_of_raw_amazon_files(tmp_path, folder, file, users, items, rows, repeated):
    counts, log, _ = run(tmp_path, format="amazon", interactions=[DATA / folder / file])
    assert (log[USER].nunique(), log[ITEM].nunique(), len(log)) == (users, items, rows)
    assert counts["repeated (user, item, time) rows, kept"] == repeated
    ready = pd.read_csv(DATA / folder / "interactions.csv.gz", dtype={"user_id": str, "item_id": str})
    columns = [USER, ITEM, TIME]
    wanted = ready[columns].sort_values(columns, kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(log[columns].sort_values(columns, kind="stable").reset_index(drop=True), wanted)


@real_data
def test_repeated_rows_are_dropped_where_asked(tmp_path):
    file = DATA / "raw_amazon2018_all_beauty" / "All_Beauty_5.json.gz"
    counts, log, _ = run(tmp_path, format="amazon", interactions=[file], duplicates="drop")
    assert len(log) == counts["interactions"] == 5269 - 1108
    assert not log.duplicated([USER, ITEM, TIME]).any()


@real_data
def test_raw_metadata_gives_attributes(tmp_path):
    folder = DATA / "raw_amazon2018_gift_cards"
    counts, _, items = run(
        tmp_path,
        format="amazon",
        interactions=[folder / "Gift_Cards_5.json.gz"],
        items=[folder / "meta_Gift_Cards.json.gz"],
    )
    assert counts["items with metadata"] == 148
    assert items[ITEM].is_unique
    card = items.set_index(ITEM).loc["B001BKEWF2"]
    assert card["title"] == "Serendipity 3 $100.00 Gift Card"
    assert card["brand"] == "Serendipity 3"
    assert card["categories"].tolist() == ["Gift Cards"]
    assert card["price"] is None


@real_data
def test_truncated_gzip_says_how_many_rows_were_whole_and_keeps_them_where_asked(tmp_path):
    folder = DATA / "raw_amazon2014_digital_music_truncated"
    files = {
        "interactions": [folder / "reviews_Digital_Music_5.json.gz.TRUNCATED"],
        "items": [folder / "meta_Digital_Music.json.gz.TRUNCATED"],
    }
    with pytest.raises(InputError, match=r"damaged after 6,908 whole lines .*data.damaged=keep"):
        run(tmp_path / "error", format="amazon", **files)
    counts, log, items = run(tmp_path / "keep", format="amazon", damaged="keep", **files)
    assert (log[USER].nunique(), log[ITEM].nunique(), len(log)) == (2490, 382, 6908)
    assert counts["damaged, whole lines kept: reviews_Digital_Music_5.json.gz.TRUNCATED"] == 6908
    album = items.set_index(ITEM).loc["5555991584"]  # a Python literal, not JSON
    assert album["title"] == "Memory of Trees"


@real_data
def test_raw_yelp_files(tmp_path):
    folder = DATA / "raw_yelp_samples"
    reviews = [folder / name for name in ("B1ueF10WER_review_999.json.gz", "Venkat_review_500.json.gz")]
    counts, log, items = run(
        tmp_path, format="yelp", interactions=reviews, items=[folder / "B1ueF10WER_business_1000.json.gz"]
    )
    assert len(log) == counts["interactions"] > 0
    assert pd.to_datetime(log[TIME], unit="s").dt.year.between(2004, 2022).all()
    assert log[RATING].between(1, 5).all()
    business = items.set_index(ITEM).loc["mpf3x-BjTdTEA3yCZrAYPw"]
    assert (business["title"], business["city"]) == ("The UPS Store", "Affton")
    assert business["categories"].tolist()[:2] == ["Shipping Centers", "Local Services"]
    assert "BusinessAcceptsCreditCards: True" in business["attributes"].tolist()


@real_data
@pytest.mark.parametrize(("name", "users", "items", "rows"), [("paper_fashion", 9094, 4722, 34759)])
def test_paper_files_without_a_header(tmp_path, name, users, items, rows):
    _, log, _ = run(tmp_path, format="table", interactions=[DATA / name / "inter.txt.gz"])
    assert (log[USER].nunique(), log[ITEM].nunique(), len(log)) == (users, items, rows)
    assert log[TIME].is_monotonic_increasing  # no time: the order of the file


def test_quirks_are_counted_one_by_one(tmp_path):
    lines = [
        review("u1", "i1", 1500000000),
        review("u1", "i1", 1500000000, style={"Size:": "L"}),  # a repeat
        review("", "i1"),
        review("u2", None),
        review("u2", "i2", None),
        "not json\n",
        "\n",
        "[1, 2]\n",
        review("u3", "i3", "1500000001", "4.0"),  # numbers as text
        review("u3", "i4", 1500086400, 1.0),
        review("u4", "i4", 1600000000, 5.0).rstrip("\n"),  # the last line without a newline
    ]
    meta = [{"asin": "i1", "title": "A"}, {"asin": "i1", "title": "B"}, {"title": "no id"}, {"asin": "i9"}]
    log_file = write(tmp_path / "log.json", "".join(lines))
    meta_file = write(tmp_path / "meta.json", "".join(json.dumps(row) + "\n" for row in meta) + "{broken\n")
    counts, log, items = run(
        tmp_path / "out", format="amazon", interactions=[log_file], items=[meta_file], end="2017-07-31", min_rating=2
    )
    assert counts["dropped, without a user"] == 1
    assert counts["dropped, without an item"] == 1
    assert counts["dropped, without a time"] == 1
    assert counts["dropped, not a JSON object"] == 2
    assert counts["dropped, after data.end"] == 1
    assert counts["dropped, below data.min_rating"] == 1
    assert counts["repeated (user, item, time) rows, kept"] == 1
    assert log[ROW].tolist() == [0, 1, 8]
    assert counts["rows_read"] == counts["interactions"] + sum(
        count
        for name, count in counts.items()
        if name.startswith("dropped, ") and "item" not in name.replace("an item", "")
    )
    assert items["title"].tolist() == ["A", None]
    assert counts["item rows repeated, dropped"] == 1
    assert counts["dropped, items without an id"] == 1
    assert counts["dropped, item lines that are no object"] == 1
    assert counts["items without metadata"] == 1


def test_amazon_2023_names_and_milliseconds(tmp_path):
    line = {"user_id": "u", "parent_asin": "P", "asin": "A", "timestamp": 1588687728923, "rating": 4.0}
    _, log, _ = run(tmp_path / "out", format="amazon", interactions=[write(tmp_path / "x.jsonl", json.dumps(line))])
    assert log.iloc[0].tolist()[:3] == ["u", "P", 1588687728]


TABLES = {
    "comma": "user_id,item_id,timestamp,rating\na,x,10,1\nb,y,20,2\n",
    "tab": "user_id\titem_id\ttimestamp\trating\na\tx\t10\t1\nb\ty\t20\t2\n",
    "other order": "rating,timestamp,item_id,user_id\n1,10,x,a\n2,20,y,b\n",
    "dates": "user_id,item_id,timestamp,rating\na,x,1970-01-01T00:00:10,1\nb,y,1970-01-01 00:00:20,2\n",
    "json": '{"user_id": "a", "item_id": "x", "timestamp": 10, "rating": 1}\n'
    '{"user_id": "b", "item_id": "y", "timestamp": 20, "rating": 2}\n',
    "byte order mark": "\ufeffuser_id,item_id,timestamp,rating\na,x,10,1\nb,y,20,2\n",
    "windows": "user_id,item_id,timestamp,rating\r\na,x,10,1\r\nb,y,20,2\r\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables_in_many_forms(tmp_path, name, packed):
    file = write(tmp_path / "log.txt", TABLES[name], packed)
    _, log, _ = run(tmp_path / "out", format="table", interactions=[file])
    assert log[[USER, ITEM, TIME, RATING]].values.tolist() == [["a", "x", 10, 1.0], ["b", "y", 20, 2.0]]


def test_parquet_with_integer_ids_and_own_column_names(tmp_path):
    frame = pd.DataFrame({"who": [7, 8], "what": [1, 2], "when": pd.to_datetime(["2020-01-01", "2020-01-02"])})
    frame.to_parquet(tmp_path / "log.parquet")
    columns = {"user": "who", "item": "what", "time": "when"}
    _, log, items = run(tmp_path / "out", format="table", interactions=[tmp_path / "log.parquet"], columns=columns)
    assert log[[USER, ITEM, TIME]].values.tolist() == [["7", "1", 1577836800], ["8", "2", 1577923200]]
    assert items[ITEM].tolist() == ["1", "2"]


HOSTILE = {
    "missing file": ({"interactions": ["nowhere.json"]}, None, "expected a file or a pattern that matches files"),
    "no pattern match": ({"interactions": ["*.nothing"]}, None, "expected a file or a pattern"),
    "unset variable": ({"interactions": ["${NOT_SET_AT_ALL}/x"]}, None, "environment variable .* is not set"),
    "no files": ({"interactions": []}, None, "expected files of interactions, found none"),
    "empty": ({}, "", "found none among 0 rows .*file is empty"),
    "wrong format": (
        {"format": "amazon"},
        '{"business_id": "b", "date": "2020-01-01"}\n',
        "expected Amazon reviews with",
    ),
    "missing column": ({}, "user,item,time\na,b,1\n", "expected a column 'user_id', found user, item, time"),
    "bad time": ({}, "user_id,item_id,timestamp\na,b,yesterday\n", "without a time: 1"),
    "binary": ({}, b"\x00\x01\x02\x03" * 100, "expected text or Parquet, found binary data"),
    "all dropped": ({"min_rating": 9}, "user_id,item_id,timestamp,rating\na,b,1,5\n", "below data.min_rating: 1"),
    "bad day": ({"start": "soon"}, "user_id,item_id,timestamp\na,b,1\n", "expected a day as YYYY-MM-DD, found 'soon'"),
    "ragged": ({}, "user_id,item_id,timestamp\na,b,1\na,b,1,2,3\n", "expected 3 columns"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_gets_one_line_and_leaves_nothing(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, content, message = HOSTILE[name]
    if content is not None:
        data = {"interactions": [str(write(tmp_path / "log", content))], **data}
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    config = Config.load(None, ["name=x", *overrides])
    with pytest.raises(InputError, match=message) as error:
        stage.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "ingest").exists()


def test_stage_runs_again_only_when_the_content_changes(tmp_path):
    file = write(tmp_path / "log.csv", TABLES["comma"])
    config = Config.load(None, ["name=x", f"data.interactions=[{file}]"])
    first = stage.run(config, tmp_path / "run")
    moved = file.rename(tmp_path / "moved.csv")
    again = Config.load(None, ["name=x", f"data.interactions=[{moved}]"])
    stamp = (tmp_path / "run" / "ingest" / "manifest.json").stat().st_mtime_ns
    assert stage.run(again, tmp_path / "run").key == first.key
    assert (tmp_path / "run" / "ingest" / "manifest.json").stat().st_mtime_ns == stamp
    write(moved, TABLES["comma"] + "c,z,30,3\n")
    assert stage.run(again, tmp_path / "run").counts["interactions"] == 3


@pytest.mark.parametrize("packed", [False, True])
def test_workers_and_blocks_change_nothing(tmp_path, packed):
    random = np.random.default_rng(0)
    lines = [
        review(f"u{random.integers(50)}", f"i{random.integers(90)}", int(random.integers(1, 99999)))
        for _ in range(3000)
    ]
    lines[1500] = "broken\n"
    file = write(tmp_path / "log.json", "".join(lines), packed)
    found = []
    for place, (workers, block) in enumerate(((1, 1 << 20), (1, 5000), (2, 20_000))):
        counts, log, items = run(
            tmp_path / str(place), workers=workers, block=block, format="amazon", interactions=[file]
        )
        found.append((counts, log, items))
    for counts, log, items in found[1:]:
        assert counts == found[0][0]
        pd.testing.assert_frame_equal(log, found[0][1])
        pd.testing.assert_frame_equal(items, found[0][2])


text_id = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=" \u00a0\u3000"), min_size=1, max_size=8
).filter(lambda text: text == text.strip())
rows = st.lists(st.tuples(text_id, text_id, st.integers(0, 2**32)), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows, block=st.integers(1, 400))
def test_any_json_log_is_read_back_row_for_row(rows, block, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    file = write(folder / "log.json", "".join(review(*row) for row in rows))
    _, log, _ = run(folder / "out", block=block, format="amazon", interactions=[file])
    assert log[[USER, ITEM, TIME]].values.tolist() == [list(row) for row in rows]
    assert log[ROW].tolist() == list(range(len(rows)))


def test_the_fast_and_the_careful_reader_agree(tmp_path):
    lines = "".join(review(f"u{n}", f"i{n}", 1500000000 + n, float(n % 5)) for n in range(50)).encode()
    names = dict.fromkeys(("reviewerID", "asin", "unixReviewTime", "overall"))
    fast, row = logs._parse_fast(lines, names)
    slow, places = logs._parse_slowly(lines, names, {})
    assert row.tolist() == places.tolist()
    assert [tuple(map(str, r.values())) for r in fast.to_pylist()] == [tuple(r.values()) for r in slow.to_pylist()]


def test_generated_data_is_deterministic_long_tailed_and_follows_attributes(tmp_path):
    files = [write_amazon(tmp_path / name, 400, 300, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert files[0][0].read_bytes() == files[1][0].read_bytes() != files[2][0].read_bytes()
    assert files[0][1].read_bytes() == files[1][1].read_bytes()
    _, log, items = run(tmp_path / "out", format="amazon", interactions=[files[0][0]], items=[files[0][1]])
    counts = log[ITEM].value_counts()
    assert counts.head(60).sum() > 0.5 * len(log)  # a fifth of the items: most of the interactions
    assert (counts < 6).mean() > 0.25
    kind = items.set_index(ITEM)["categories"].str[2]
    log = log.assign(kind=log[ITEM].map(kind)).sort_values([USER, TIME, ROW])
    following = log.groupby(USER)["kind"].shift(-1)
    table = pd.crosstab(log["kind"], following, normalize="index")
    assert (table.max(axis=1) > 0.5).all()  # after each kind one kind follows most often; chance is 1 in 12


def test_output_has_the_schema_of_the_contract(tmp_path):
    _, log, _ = run(tmp_path / "out", format="table", interactions=[write(tmp_path / "log.csv", TABLES["comma"])])
    assert list(log.columns) == [USER, ITEM, TIME, ROW, RATING]
    part = pq.read_schema(next((tmp_path / "out" / INTERACTIONS).glob("*.parquet")))
    assert part.types == [pa.string(), pa.string(), pa.int64(), pa.int64(), pa.float32()]
