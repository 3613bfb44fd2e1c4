"""Times are read as they were meant, to the part of a second, or refused with the setting that decides."""

import json
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.dataset.names import ITEM, ROW, SUBSECOND, TIME
from llmcfsr_merlin.dataset.raw.fields.numbers import to_ratings
from llmcfsr_merlin.dataset.raw.fields.times import TimeReader, to_integers
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.world import run, write

AT = 1_535_063_326  # 2018-08-23 22:28:46 UTC
DAY = 1_534_982_400
# Notation -> texts, and the seconds and the part of a second that they mean.
NOTATIONS = {
    "seconds": (["1535063326", "1535063326.25"], [(AT, 0), (AT, 0.25)]),
    "decimal comma": (["1535063326,25"], [(AT, 0.25)]),
    "spaces": ([" 1535063326 ", "1535063327"], [(AT, 0), (AT + 1, 0)]),
    "milliseconds": (["1535063326900", "1535063326100"], [(AT, 0.9), (AT, 0.1)]),
    "microseconds": (["1535063326000001"], [(AT, 1e-6)]),
    "nanoseconds": (["1535063326000000001"], [(AT, 1e-9)]),
    "nanoseconds of a decimal": (
        ["1535063326.123456789", "1535063326.123456788"], [(AT, 0.123456789), (AT, 0.123456788)]
    ),
    "shares of the log's time": (["0.9", "0.1", "1.0"], [(0, 0.9), (0, 0.1), (1, 0)]),
    "a date in digits": (["20180823", "20180824"], [(DAY, 0), (DAY + 86_400, 0)]),
    "a date in digits, as pandas writes it": (["20180823.0"], [(DAY, 0)]),
    "date and time in digits": (["20180823222846"], [(AT, 0)]),
    "date and minute in digits": (["201808232228"], [(AT - 46, 0)]),
    "date, time and part of a second in digits": (["20180823222846.500000", "20180823222846"], [(AT, 0.5), (AT, 0)]),
    "date and millisecond in digits": (["20180823222846500"], [(AT, 0.5)]),
    "ISO": (["2018-08-23 22:28:46", "2018-08-23T22:28:46Z", "2018-08-23 22:28:46.5"], [(AT, 0), (AT, 0), (AT, 0.5)]),
    "ISO with zones": (
        ["2018-08-24T00:28:46+02:00", "2018-08-23 18:28:46-0400", "2018-08-23 15:28:46 PDT"], [(AT, 0)] * 3
    ),
    "ISO with nanoseconds": (["2018-08-23 22:28:46.123456789"], [(AT, 0.123456789)]),
    "REES46": (["2018-08-23 22:28:46 UTC"], [(AT, 0)]),
    "Twitter": (["Thu Aug 23 22:28:46 +0000 2018"], [(AT, 0)]),
    "Goodreads": (["Thu Aug 23 15:28:46 -0700 2018"], [(AT, 0)]),
    "Java": (["Fri Aug 24 00:28:46 CEST 2018"], [(AT, 0)]),
    "C": (["Thu Aug  2 22:28:46 2018"], [(AT - 21 * 86_400, 0)]),
    "mail": (["Thu, 23 Aug 2018 22:28:46 GMT"], [(AT, 0)]),
    "a web server": (["23/Aug/2018:22:28:46 +0000"], [(AT, 0)]),
    "a browser": (["Thu Aug 23 2018 22:28:46 GMT+0000 (Coordinated Universal Time)"], [(AT, 0)]),
    "in words": (["August 23, 2018", "Aug 23rd, 2018 10:28:46 PM", "23 August 2018"], [(DAY, 0), (AT, 0), (DAY, 0)]),
    "Amazon": (["08 23, 2018"], [(DAY, 0)]),
    "Ratings of CDs": (["23-Aug-2018"], [(DAY, 0)]),
    "American": (["8/23/2018 10:28:46 PM", "8/5/2018"], [(AT, 0), (DAY - 18 * 86_400, 0)]),
    "European": (["23.08.2018 22:28", "5.8.2018"], [(AT - 46, 0), (DAY - 18 * 86_400, 0)]),
    "compact": (["20180823T222846Z"], [(AT, 0)]),
    "of several kinds": (["2018-08-23 22:28:46 UTC", "1535063326"], [(AT, 0)] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTATIONS)
def test_notations(name, tmp_path):
    texts, expected = NOTATIONS[name]
    lines = [json.dumps({"user_id": "u", "item_id": f"i{n}", "timestamp": text}) for n, text in enumerate(texts)]
    _, log, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log.jsonl", lines)))
    assert log[TIME].tolist() == [seconds for seconds, _ in expected]
    assert log[SUBSECOND].tolist() == pytest.approx([rest for _, rest in expected], abs=1e-12)


SETTINGS = {
    "excel_days": ({"time_unit": "excel_days"}, ["43831.5", "43831"], [1_577_880_000, 1_577_836_800]),
    "days": ({"time_unit": "days"}, ["17766", "17766.5"], [DAY, DAY + 43_200]),
    "seconds of 1970": ({"time_unit": "s"}, ["20180823", "43831"], [20_180_823, 43_831]),
    "milliseconds of 1970": ({"time_unit": "ms"}, ["5500", "20180823"], [5, 20_180]),
    "a format": ({"time_format": "%d/%m/%Y %H:%M"}, ["04/03/2012 18:00"], [1_330_884_000]),
    "a format of digits": ({"time_format": "%Y%m%d%H"}, ["2018082322"], [AT - 28 * 60 - 46]),
    "a short year": ({"time_format": "%m/%d/%y"}, ["08/23/18"], [DAY]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_decide(name, tmp_path):
    settings, texts, expected = SETTINGS[name]
    lines = ["user_id,item_id,timestamp"] + [f"u,i,{text}" for text in texts]
    _, log, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log", lines)), **settings)
    assert log[TIME].tolist() == expected


AMBIGUOUS = {
    "day or month": (["04/03/2012", "05/03/2012"], {}, r"day and month .*'04/03/2012'.*data.time_format, e.g. %m"),
    "both orders": (["13/04/2012", "04/13/2012"], {}, r"day and month"),
    "two digits of a year": (["4/23/12"], {}, r"'4/23/12'.*data.time_format"),
    "Excel": (["43831.5", "43832"], {}, r"43831.5: an Excel day or a second of 1970\? Set data.time_unit"),
    "an hour in digits": (["2040082322"], {}, r"an hour of 2040 or a second of 2034\?.*=%Y%m%d%H or .*=s"),
    "dates of what is no clock": (["0.5", "1"], {"start": "2019-01-01"}, r"data.end, found 0.5.*set data.time_unit"),
    "years and months": (["201809"], {"end": "2019-01-01"}, r"found 201809.*data.time_format"),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(name, tmp_path):
    texts, settings, message = AMBIGUOUS[name]
    lines = ["user_id,item_id,timestamp"] + [f"u,i,{text}" for text in texts]
    path = write(tmp_path / "log", lines)
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "out", interactions=str(path), **settings)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_first_rows_decide_for_the_file_whatever_the_block(tmp_path):
    lines = ["user_id,item_id,timestamp", "u,i,08/23/2018", *["u,i,04/03/2012"] * 70_000, "u,i,23/08/2018"]
    path = str(write(tmp_path / "log", lines))
    for block in (100_000, 8 << 20):
        counts, log, _ = run(tmp_path / str(block), block=block, interactions=path)
        assert log[TIME].tolist() == [DAY, *[1_333_411_200] * 70_000] and counts["unreadable_time"] == 1


def test_start_and_end_hold_for_dates_in_digits(tmp_path):
    lines = ["user_id,item_id,timestamp"] + [f"u,i,2018092{day}" for day in range(4)]
    path = str(write(tmp_path / "log", lines))
    assert run(tmp_path / "a", interactions=path, start="2018-09-21", end="2018-09-22")[0]["interactions"] == 2
    with pytest.raises(InputError, match="4 outside_dates"):
        run(tmp_path / "b", interactions=path, end="2017-12-31")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """In the format that the name ends with."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_moments_of_one_second_keep_their_order_and_are_no_duplicates(kind, tmp_path):
    frame = pd.DataFrame({"user_id": "u", "item_id": list("abcda"),
                          "timestamp": [1_600_000_000_000 + ms for ms in (900, 100, 500, 1000, 901)]})  # fmt: skip
    path = tmp_path / f"log.{kind}"
    typed = frame.assign(timestamp=pd.to_datetime(frame["timestamp"], unit="ms"))
    write_frame(typed if kind == "parquet" else frame, path)
    counts, log, _ = run(tmp_path / "out", interactions=str(path), duplicates="drop")
    assert counts["duplicates_dropped"] == 0
    assert "".join(log.sort_values([TIME, SUBSECOND, ROW])[ITEM]) == "bcaad"


def test_missing_and_unreadable_times_are_counted_apart(tmp_path):
    texts = ["1535063326", "", "NULL", "\\N", "soon", "0000-00-00 00:00:00", "nan"]
    lines = ["user_id,item_id,timestamp"] + [f"u,i,{text}" for text in texts]
    counts, log, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log", lines)))
    assert (len(log), counts["no_time"], counts["unreadable_time"]) == (1, 4, 2)


def test_odd_times_are_warned_of_and_counted(tmp_path, capsys):
    future = int(time.time()) + 10**7
    lines = ["user_id,item_id,timestamp", f"u,a,{AT}", f"u,b,{AT}", f"u,c,{AT}000", "u,d,5", f"u,e,{future}"]
    counts, log, _ = run(tmp_path / "out", interactions=str(write(tmp_path / "log", lines)))
    assert log[TIME].tolist() == [AT, AT, AT, 5, future]
    assert [counts[name] for name in ("times_before_1990", "times_in_future", "mixed_time_units")] == [1, 1, 1]
    shown = capsys.readouterr().err
    assert "warning: 1 times are before 1990" in shown and "warning: 1 times are in the future" in shown
    assert "warning: 1 times are in another unit than the first rows" in shown


COLUMNS = {
    "dates": (pa.array([17_766], pa.date32()), [DAY]),
    "milliseconds of dates": (pa.array([DAY * 1000], pa.date64()), [DAY]),
    "timestamps before 1970": (pa.array([-1500], pa.timestamp("ms")), [-2]),
    "timestamps with a zone": (pa.array([AT], pa.timestamp("s", "Europe/Paris")), [AT]),
    "floats": (pa.array([float(AT), None, float("nan"), float("inf"), 1e300]), [AT, None, None, None, None]),
    "unsigned": (pa.array([AT, 2**64 - 1], pa.uint64()), [AT, None]),
    "small integers": (pa.array([5, 7], pa.int8()), [5, 7]),
    "decimals": (pa.array([Decimal(AT)], pa.decimal128(20, 3)), [AT]),
    "categories": (pa.array([str(AT)]).dictionary_encode(), [AT]),
    "objects of MongoDB": (pa.array([{"$date": "2018-08-23T22:28:46Z"}]), [AT]),
    "nothing": (pa.nulls(2), [None, None]),
    "no rows": (pa.array([], pa.string()), []),
    "truth": (pa.array([True]), [None]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_any_type(name):
    column, expected = COLUMNS[name]
    column = pa.chunked_array([column])
    found = TimeReader.of(column, "log")(column)
    assert found.seconds.to_pylist() == expected and len(found.rest) == len(expected)
    assert ((found.rest >= 0) & (found.rest < 1)).all()


def test_ratings_and_orders_of_any_notation():
    ratings = to_ratings(pa.array(["4,5", " 3 ", "5", "4.0", "x", "", None, "1e400"]))
    assert ratings.to_pylist() == [4.5, 3, 5, 4, None, None, None, None]
    order = to_integers(pa.array(["2", "1.75", "1.5", "x", None]))
    assert order.seconds.to_pylist() == [2, 1, 1, None, None] and order.rest.tolist()[:3] == [0, 0.75, 0.5]


def test_unreadable_ratings_are_counted(tmp_path):
    rows = ["u;a;1500000000;4,5", "u;b;1500000001;good", "u;c;1500000002;1,5", "u;d;1500000003;"]
    lines = ["user_id;item_id;timestamp;rating", *rows]
    path = str(write(tmp_path / "log", lines))
    counts, log, _ = run(tmp_path / "a", interactions=path, min_rating=4)
    assert log[ITEM].tolist() == ["a"]
    assert [counts[name] for name in ("unreadable_rating", "no_rating", "below_min_rating")] == [1, 1, 1]
    assert run(tmp_path / "b", interactions=path)[0]["unread_ratings"] == 1


def test_time_settings_exclude_each_other():
    from llmcfsr_merlin.config.load import Config

    with pytest.raises(InputError, match="expected time_unit or time_format, found both"):
        Config.load(None, ["data.time_unit=s", "data.time_format=%Y"])
    with pytest.raises(InputError, match=r"data\.time_format"):
        Config.load(None, ["data.time_format=YYYY-MM-DD"])


def test_random_moments_of_all_notations_agree(tmp_path):
    moments = np.random.default_rng(0).integers(AT - 10**8, AT, 300)
    stamps = pd.to_datetime(moments, unit="s")
    for form in ("%a %b %d %H:%M:%S +0000 %Y", "%Y-%m-%d %H:%M:%S UTC", "%m/%d/%Y %I:%M:%S %p", "%d-%b-%Y %H:%M:%S"):
        column = pa.chunked_array([stamps.strftime(form).tolist()])
        assert TimeReader.of(column, form)(column).seconds.to_pylist() == moments.tolist(), form
    pq.write_table(pa.table({"user_id": ["u"] * 300, "item_id": ["i"] * 300, "timestamp": moments}), tmp_path / "log")
    assert run(tmp_path / "out", interactions=str(tmp_path / "log"))[1][TIME].tolist() == moments.tolist()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_orders_what_happened_at_one_time(kind, tmp_path):
    frame = pd.DataFrame({"user_id": "u", "item_id": list("abcde"), "timestamp": [1_600_000_000] * 4 + [1_500_000_000],
                          "line": [3, 1, 2, 10, 99]})  # fmt: skip
    path = tmp_path / f"log.{kind}"
    write_frame(frame, path)
    log = run(tmp_path / "out", interactions=str(path), columns={"tie": "line"})[1]
    assert "".join(log.sort_values([TIME, SUBSECOND, ROW])[ITEM]) == "ebcad"
    assert set(log[TIME]) == {1_600_000_000, 1_500_000_000}


def test_a_tie_column_that_is_missing_unreadable_or_beside_parts_of_seconds(tmp_path, capsys):
    lines = [
        "user_id,item_id,timestamp,line",
        "u,a,1600000000,5",
        "u,b,1600000000,",
        "u,c,1600000000,-1",
        "u,d,1600000000,2",
    ]
    path = str(write(tmp_path / "log.csv", lines))
    counts, log, _ = run(tmp_path / "a", interactions=path, columns={"tie": "line"})
    assert counts["unread_ties"] == 2 and "".join(log.sort_values([TIME, SUBSECOND, ROW])[ITEM]) == "bcda"
    with pytest.raises(InputError, match=r"a field seq \(tie\), found user_id, item_id, timestamp, line"):
        run(tmp_path / "b", interactions=path, columns={"tie": "seq"})
    path = str(write(tmp_path / "parts.csv", [lines[0], "u,a,1600000000.5,5", "u,b,1600000000.25,6"]))
    with pytest.raises(InputError, match="expected times of whole seconds"):
        run(tmp_path / "c", interactions=path, columns={"tie": "line"})
