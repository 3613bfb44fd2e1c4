"""Bad input ends with one clear line and nothing written; what is bad in part is dropped and counted."""

import gzip
import json
import os

import pandas as pd
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import ingest_stage as stage
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.world import LOG, metadata_2018, reviews_2018, rows, run, write

YELP = json.dumps({"user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-08-23 22:28:46"})
CSV = ["user_id,item_id,timestamp", "u,a,5"]


def packed(lines, cut=None, extra=b"") -> bytes:
    data = gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
    return data[:cut] + extra


FILES = {
    # name: (format, content, what the message must say)
    "empty": ("amazon", b"", r"is empty"),
    "blank": ("table", b"\n\n \n", r"blank lines only"),
    "empty gzip": ("amazon", gzip.compress(b""), r"empty or truncated gzip"),
    "binary": ("table", os.urandom(5000).replace(b"\n", b"\0") + b"\0", r"binary data"),
    "zip": ("amazon", b"PK\x03\x04" + bytes(50), r"a zip archive: unpack"),
    "tar": ("yelp", b"yelp.json".ljust(257, b"\0") + b"ustar" + bytes(200), r"a tar archive: extract"),
    "tar.gz": ("yelp", gzip.compress(b"yelp.json".ljust(257, b"\0") + b"ustar" + bytes(200)), r"a tar archive"),
    "utf-16, cut": ("table", "user_id,item_id,timestamp\nu,a,1".encode("utf-16")[:-1], r"expected utf-16 text"),
    "yelp as amazon": ("amazon", YELP.encode(), r"asin.*found user_id, business_id.*set data.format=yelp"),
    "amazon as yelp": ("yelp", reviews_2018()[0].encode(), r"user_id.*found overall.*set data.format=amazon"),
    "metadata as reviews": ("amazon", metadata_2018()[0].encode(), r"reviewerID or user_id.*give it as data.items"),
    "csv as amazon": ("amazon", "\n".join(CSV).encode(), r"expected amazon JSON lines.*data.format=table"),
    "json array": ("amazon", b'[{"asin": "x"}]', r"JSON array: convert it by `jq -c '.\[\]'`"),
    "indented json": ("amazon", b'{\n  "asin": "x"\n}', r"indented JSON"),
    "not json": ("amazon", b"{broken\n{also\n", r"expected one JSON object per line, found '\{broken'"),
    "missing user": ("table", b"user,item_id,timestamp\nu,a,1\n", r"user_id \(user\), found user, item_id, timestamp"),
    "missing time": (
        "table",
        b"user_id,item_id,when\nu,a,1\n",
        r"timestamp or order \(time\), found user_id, item_id, w",
    ),
    "unreadable time": ("table", b"user_id,item_id,timestamp\nu,a,last week\n", r"1 unreadable_time.*'last week'"),
    "strange times": (
        "table",
        b"user_id,item_id,timestamp\nu,a,/Date(1)/\n",
        r"is '/Date\(1\)/': set data.time_format",
    ),
    "lists as text": ("table", b'user_id,item_id,timestamp\nu,"[1, 2]",1\n', r"1 nested_item.*explode"),
    "header only": ("table", b"user_id,item_id,timestamp\n", r"none left of 0 rows"),
    "no ids": ("table", b"user_id,item_id,timestamp\n,a,1\nu,,1\n", r"none left of 2 rows \(1 no_user, 1 no_item\)"),
    "damaged": ("amazon", packed(reviews_2018(), -12), r"damaged gzip \(.*truncated\): 4 rows.*data.damaged=keep"),
    "damaged at once": ("amazon", b"\x1f\x8b" + b"junk" * 20, r"damaged gzip .* 0 whole rows"),
    "junk after gzip": ("amazon", packed(reviews_2018(), extra=b"junk"), r"not gzip from byte"),
    "damaged parquet": ("table", b"PAR1" + bytes(100), r"cannot be read as Parquet"),
}


def config(format, path, *overrides) -> Config:
    return Config.load(None, [f"data.format={format}", f"data.interactions={path}", *overrides])


def refused(config, tmp_path, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        stage.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value), "one line"
    assert not (tmp_path / "run" / "ingest").exists(), "nothing half-written"


@pytest.mark.parametrize("name", FILES)
def test_bad_files(name, tmp_path):
    format, content, message = FILES[name]
    path = tmp_path / "log.gz"
    path.write_bytes(content)
    refused(config(format, path), tmp_path, message)


@pytest.mark.parametrize("path, message", [
    ("nowhere.json", r"data.interactions: expected a file, found no .*nowhere.json'"),
    ("*.json", r"expected files that match, found no .*\*.json'"),
    ("", r"expected a file, found the folder .*: use a pattern"),
])  # fmt: skip
def test_missing_files(path, message, tmp_path):
    refused(config("amazon", tmp_path / path), tmp_path, message)


def test_no_files_at_all(tmp_path):
    refused(Config(), tmp_path, r"data.interactions: expected files.*found none: list them")


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMCFSR_DATA", raising=False)
    refused(Config.load("yelp"), tmp_path, r"environment variable LLMCFSR_DATA .* is not set: `export LLMCFSR_DATA=")


def test_reviews_given_as_metadata(tmp_path):
    path = write(tmp_path / "log.json", [YELP])
    refused(config("yelp", path, f"data.items={path}"), tmp_path, r"expected item metadata, found reviews")


def test_metadata_without_an_item(tmp_path):
    path, meta = write(tmp_path / "log.csv", CSV), write(tmp_path / "meta.csv", ["asin,title", "a,A"])
    refused(config("table", path, f"data.items={meta}"), tmp_path, r"field item_id \(item\), found asin, title")


def test_filters_that_leave_nothing(tmp_path):
    path = write(tmp_path / "log.json", reviews_2018())
    refused(config("amazon", path, "data.min_rating=6"), tmp_path, r"none left of 5 rows \(5 below_min_rating\)")
    refused(config("amazon", path, "data.start=2030-01-01"), tmp_path, r"5 outside_dates")


def test_dates_need_times_and_ratings_a_column(tmp_path):
    path = write(tmp_path / "log.csv", ["user_id,item_id,order", "u,a,1"])
    refused(config("table", path, "data.start=2018-01-01"), tmp_path, r"found no time column")
    refused(config("table", path, "data.min_rating=3"), tmp_path, r"rating \(rating\), found user_id")
    with pytest.raises(InputError, match=r"start .* must not be after end"):
        Config.load(None, ["data.start=2019-01-01", "data.end=2018-01-01"])


def test_a_wrong_number_of_names(tmp_path):
    path = write(tmp_path / "inter.txt", ["u i 3"])
    refused(config("table", path, "data.columns.names=[user_id,item_id]"), tmp_path, r"expected 2 columns.*found 3")


def test_damaged_gzip_keeps_whole_rows(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(packed(reviews_2018(), -12))
    counts, log, _ = run(tmp_path / "out", format="amazon", interactions=str(path), damaged="keep")
    assert rows(log) == LOG[:4]
    assert (counts["damaged_files"], counts["cut_by_damage"]) == (1, 1)


def test_rows_before_damage_in_the_middle_are_all_kept(tmp_path):
    """A decoder that fails gives nothing of the piece that it was fed; those rows must not be lost."""
    lines = [json.dumps({"user_id": f"u{n * 7919}", "item_id": n, "timestamp": n}) for n in range(5000)]
    data = bytearray(gzip.compress("\n".join(lines).encode()))
    half = len(data) // 2
    data[half : half + 40] = bytes(40)
    (tmp_path / "log").write_bytes(data)
    counts, log, _ = run(tmp_path / "out", interactions=str(tmp_path / "log"), damaged="keep")
    assert counts["damaged_files"] == 1
    assert 2000 < len(log) < 5000


def test_gzip_of_several_members(tmp_path):
    """As `cat a.gz b.gz` makes them, with a line across the border, and with zero padding."""
    text = "\n".join(reviews_2018()).encode()
    (tmp_path / "log").write_bytes(gzip.compress(text[:300]) + gzip.compress(text[300:]) + bytes(512))
    _, log, _ = run(tmp_path / "out", format="amazon", interactions=str(tmp_path / "log"))
    assert rows(log) == LOG


def test_bad_lines_are_dropped_and_counted(tmp_path):
    good = reviews_2018()
    bad = ["{broken", "", "[1]", "5", '{"asin": "A1", "unixReviewTime": 5}', '{"reviewerID": " ", "asin": "A1"}',
           '{"reviewerID": "u", "unixReviewTime": 5}', '{"reviewerID": "u", "asin": "A1"}',
           '{"reviewerID": "u", "asin": "A1", "unixReviewTime": "soon"}', "\x00\x01"]  # fmt: skip
    lines = [line for pair in zip(good, bad[:5]) for line in pair] + bad[5:]
    counts, log, _ = run(tmp_path / "out", format="amazon", interactions=str(write(tmp_path / "log", lines)),
                         max_dropped=1)  # fmt: skip
    assert rows(log) == LOG
    assert log["row"].tolist() == [0, 2, 4, 6, 8], "ROW is the line's place in the file"
    assert {name: counts[name] for name in ("bad_lines", "no_user", "no_item", "no_time", "unreadable_time")} == {
        "bad_lines": 4, "no_user": 2, "no_item": 1, "no_time": 1, "unreadable_time": 1,
    }  # fmt: skip
    assert counts["rows_read"] == 14


def test_csv_rows_of_another_width(tmp_path):
    lines = ["user_id,item_id,timestamp", "u,a,1", "u,b", "u,c,3,4", "", "u,d,5"]
    counts, log, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log.csv", lines)))
    assert log["item_id"].tolist() == ["a", "d"] and log["row"].tolist() == [0, 4]
    assert counts["bad_lines"] == 2


def test_lone_surrogates_do_not_stop_a_log(tmp_path):
    (tmp_path / "log").write_bytes(b'{"user_id": "u", "item_id": "\\ud800", "timestamp": 1}\n')
    _, log, _ = run(tmp_path / "out", interactions=str(tmp_path / "log"))
    assert log[["user_id", "item_id"]].values.tolist() == [["u", "?"]]


def test_ratings_dates_and_duplicates(tmp_path):
    path = str(write(tmp_path / "log", reviews_2018()))
    counts, log, _ = run(tmp_path / "a", format="amazon", interactions=path, min_rating=4)
    assert rows(log) == [LOG[0], LOG[2], LOG[3]] and counts["below_min_rating"] == 2
    _, log, _ = run(tmp_path / "b", format="amazon", interactions=path, start="2016-01-01", end="2016-09-01")
    assert rows(log) == [LOG[4]]
    counts, log, _ = run(tmp_path / "c", format="amazon", interactions=path, duplicates="drop")
    assert rows(log) == [LOG[0], LOG[1], LOG[2], LOG[4]]
    assert (counts["duplicates_dropped"], counts["interactions"]) == (1, 4)


def test_times_of_any_notation(tmp_path):
    texts = ["1535063326", "1535063326.9", "1535063326000", "2018-08-23 22:28:46", "2018-08-23T22:28:46Z",
             "2018-08-24T00:28:46+02:00", "1535063326000000"]  # fmt: skip
    lines = ["user_id,item_id,timestamp"] + [f"u,a,{text}" for text in texts] + ['u,a,"08 23, 2018"']
    _, log, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log", lines)))
    assert log["timestamp"].tolist() == [1_535_063_326] * 7 + [1_534_982_400]
    frame = pd.DataFrame({"user_id": [1.0, 2.0], "item_id": ["a", "b"],
                          "timestamp": pd.to_datetime(["2018-08-23 22:28:46", None])})  # fmt: skip
    frame.to_parquet(tmp_path / "log.parquet")
    counts, log, _ = run(tmp_path / "parquet", interactions=str(tmp_path / "log.parquet"))
    assert log[["user_id", "timestamp"]].values.tolist() == [["1", 1_535_063_326]] and counts["no_time"] == 1


def test_titles_of_javascript_are_no_titles(tmp_path):
    meta = [json.dumps({"asin": "A1", "title": "var aPageStart = (new Date()).getTime();"})]
    counts, _, items = run(tmp_path / "out", format="amazon", interactions=str(write(tmp_path / "l", reviews_2018())),
                           items=str(write(tmp_path / "m", meta)))  # fmt: skip
    assert items["title"].isna().all() and counts["bad_titles"] == 1
