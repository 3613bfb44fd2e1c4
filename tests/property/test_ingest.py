"""Properties of ingest on random logs."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.raw.fields.ids import clean_id
from llmcfsr_merlin.dataset.raw.ingest import ingest
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.world import read

# Everything that may stand in an id but for what ends a line or is no character, and what is cleaned.
IDS = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=4)
IDS = IDS.filter(lambda text: text[0] not in "[{" and clean_id(text) == text)
AS_THEY_ARE = {"null_values": (), "time_unit": "s"}
ROWS = st.lists(
    st.tuples(IDS, IDS, st.integers(0, 2**31), st.one_of(st.none(), st.integers(1, 5))), min_size=1, max_size=40
)


def ingested(data: bytes, workers: int, block: int, **config) -> tuple:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "log", Path(folder) / "out"
        path.write_bytes(data)
        out.mkdir()
        settings = DataConfig(interactions=str(path), **AS_THEY_ARE, **config)
        counts = ingest(settings, out, workers=workers, block=block)
        return counts, *read(out)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(16, 3000), st.booleans(), st.booleans())
def test_json_lines_come_back_as_they_were_written(rows, workers, block, packed, ascii):
    lines = [
        json.dumps(dict(zip(("user_id", "item_id", "timestamp", "rating"), row)), ensure_ascii=ascii) for row in rows
    ]
    data = "\n".join(lines).encode()
    counts, log, items = ingested(gzip.compress(data) if packed else data, workers, block)
    assert list(log["user_id"]) == [row[0] for row in rows]
    assert list(log["item_id"]) == [row[1] for row in rows]
    assert list(log["timestamp"]) == [row[2] for row in rows]
    assert [None if rating != rating else rating for rating in log["rating"]] == [row[3] for row in rows]
    assert list(log["row"]) == list(range(len(rows)))
    assert list(items["item_id"]) == list(dict.fromkeys(row[1] for row in rows))
    assert (counts["users"], counts["items"]) == (len({row[0] for row in rows}), len({row[1] for row in rows}))


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_dropping_repeats_keeps_the_first(rows, more):
    rows = rows + rows[:more]
    data = "\n".join(json.dumps(dict(zip(("user_id", "item_id", "timestamp"), row[:3]))) for row in rows).encode()
    counts, log, _ = ingested(data, 1, 200, duplicates="drop")
    first = {row[:3]: number for number, row in reversed(list(enumerate(rows)))}
    assert list(log["row"]) == sorted(first.values())
    assert counts["duplicates_dropped"] == len(rows) - len(first)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b'{"user_id": "u", "item_id": "i", "timestamp": 5}',
       b'{"user_id": "u", "item_id": "i"}', b'{"user_id": {"a": [1]}, "item_id": "i", "timestamp": 5}',
       b'{"user_id": "u", "item_id": "i", "timestamp": 1e400}'])), max_size=12), st.integers(16, 500))  # fmt: skip
def test_any_bytes_are_counted_or_refused_in_one_line(pieces, block):
    """Never another exception, and every line is read or counted."""
    data = b'{"user_id": "a", "item_id": "b", "timestamp": 1}\n' + b"\n".join(pieces)
    try:
        one, log, _ = ingested(data, 1, 1 << 20)
    except InputError as error:
        assert "\n" not in str(error)
        return
    two, again, _ = ingested(data, 2, block)
    assert one == two and log.equals(again)
    assert one["rows_read"] == sum(bool(line.strip()) for line in data.decode("utf-8", "replace").split("\n"))


NOTES = st.lists(
    st.sampled_from(["a", "b c", '"', ",", "\n", ", ", "\r\n", "\n\n", ";", "\t", "é", '""', "\\"]), max_size=6
).map("".join)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(NOTES, NOTES), min_size=1, max_size=25),
    st.sampled_from(",;|\t"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([16, 50, 300, 1 << 20]),
)
def test_quoted_text_comes_back_as_it_was_written(notes, delimiter, quoting, end, block):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(["user_id", "note", "item_id", "timestamp", "more"])
    writer.writerows((f"u{n}", note, f"i{n}", n, more) for n, (note, more) in enumerate(notes))
    counts, log, _ = ingested(text.getvalue().encode(), 1, block, delimiter=delimiter)
    assert list(log["item_id"]) == [f"i{n}" for n in range(len(notes))]
    assert list(log["timestamp"]) == list(range(len(notes)))
    assert counts["bad_lines"] == counts["stray_quotes"] == 0
    assert log["row"].is_monotonic_increasing and log["row"].is_unique
