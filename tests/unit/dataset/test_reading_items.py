"""Metadata and new items: every row is read, or counted with its reason."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.dataset.raw.additions import read_items
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.texts import ingested, text
from tests.unit.dataset.world import run, write


@pytest.mark.parametrize("content, quoting, titles", [
    ('i0\t"8"" pan"\tx\ni1\t8" pan\tx\ni2\t"Heroes"\tx\n', "auto", ['8" pan', '8" pan', '"Heroes"']),
    ('i0\t"two\nlines"\tx\ni1\t"a\tb"\tx\n', "auto", ["two lines", "a b"]),
    ('i0\t"Heroes\tx\ni1\t50"\tx\n', "auto", ['"Heroes', '50"']),
    ('i0\t"Heroes"\tx\ni1\t8" pan\tx\n', "double", ["Heroes", '8" pan']),
    ('i0\t"8"" pan"\tx\n', "none", ['"8"" pan"']),
    ('i0\t"8\\" pan"\tx\n', "backslash", ['8" pan']),
])  # fmt: skip
def test_quotes_in_tab_separated_metadata(content, quoting, titles, tmp_path):
    log = "user_id,item_id,timestamp\n" + "".join(f"u,i{n},{n + 1}\n" for n in range(3))
    counts, _, items = ingested(tmp_path, log, items="item_id\ttitle\tmore\n" + content, item_quoting=quoting)
    assert items[TITLE].dropna().tolist() == titles
    assert not counts.get("metadata_bad_lines")


@pytest.mark.parametrize("settings, titles", [
    ({"columns": {"item": "movieId"}}, r"field movieId \(item\), found id, title: name .*data.item_columns.item"),
    ({"columns": {"item": "movieId"}, "item_columns": {"item": "id"}}, ["A", "B"]),
    ({"columns": {"item": "movieId"}, "item_columns": {"item": 0}}, ["A", "B"]),
])  # fmt: skip
def test_the_items_have_their_own_names(settings, titles, tmp_path):
    log = "user_id,movieId,timestamp\nu,0,1\nu,1,2\n"
    if isinstance(titles, str):
        with pytest.raises(InputError, match=titles):
            ingested(tmp_path, log, items="id,title\n0,A\n1,B\n", **settings)
        return
    assert ingested(tmp_path, log, items="id,title\n0,A\n1,B\n", **settings)[2][TITLE].tolist() == titles


def test_items_of_another_dialect_than_the_log(tmp_path):
    """The names of a log without a header are not the items'."""
    counts, _, items = ingested(
        tmp_path, text("::", ""), columns={"names": ["user_id", "item_id", "timestamp"]},
        items="i0::Léa (1995)::Animation|Drama\n".encode("latin-1"), item_encoding="latin-1",
        item_columns={"names": ["item_id", "title", "genres"]},
    )  # fmt: skip
    assert items.iloc[0].tolist() == ["i0", "Léa (1995)", "Animation|Drama"] and counts["items_with_metadata"] == 1
    with pytest.raises(InputError, match=r"one column title, found 2 of that name \(columns 2, 3\): rename one"):
        ingested(tmp_path, text(), items="item_id,title,title\ni0,A,B\n")


def test_bytes_of_items_are_no_text(tmp_path, capsys):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "item_id": pa.array([b"i0", b"i1"]), "title": pa.array([b"A", b"B"]), "image": pa.array([b"\xff\xd8", None]),
        "photo": pa.array([{"bytes": b"\xff", "path": "a.jpg"}, None], kind),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "items.parquet")
    write(tmp_path / "log.csv", text().splitlines())
    paths = {"interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.parquet")}
    counts, _, items = run(tmp_path / "out", **paths)
    assert list(items.columns) == [ITEM, TITLE] and items[TITLE].tolist()[:2] == ["A", "B"]
    assert counts["metadata_binary"] == 2
    assert "metadata binary: 2; first column " in capsys.readouterr().err


NEW = {
    # name: (bytes, ids, or what the one line says)
    "JSON": (b'{"item_id": " N1 ", "title": "x"}\n\n{"item_id": 1002.0}', ["N1", "1002"]),
    "U+2028 in a title": ('{"item_id": "N1", "title": "two\u2028lines"}\n'.encode(), ["N1"]),
    "byte order mark": (b'\xef\xbb\xbf{"item_id": "N1"}\n', ["N1"]),
    "gzip": (gzip.compress(b'{"item_id": "N1"}\n'), ["N1"]),
    "CSV": (b'item_id,title\nN1,"a, b"\nN2,\n', ["N1", "N2"]),
    "as the run's own metadata": (b'{"sku": "N1", "title": "x"}\n', ["N1"]),
    "latin-1": (b'{"item_id": "N1"}\n{"item_id": "N2", "title": "Cr\xe8me"}\n', r"utf8: .*:2: .*Cr\\xe8me.*as UTF-8"),
    "a bad line": (b'{"item_id": "N1"}\n{"item_id": \n', r"bad lines: .*new:2: '\{\"item_id\": '"),
    "no id": (b'{"item_id": "N1"}\n{"title": "x"}\n', r"no item: .*new:2: "),
    "no column of ids": (b'{"title": "x"}\n', r"with a field sku \(item\), found title"),
    "nothing": (b"", r"is empty"),
}


@pytest.mark.parametrize("name", NEW)
def test_new_items_are_read_as_metadata_are(name, tmp_path):
    content, expected = NEW[name]
    (tmp_path / "new").write_bytes(content)
    settings = DataConfig(interactions="log.csv", item_columns={"item": "sku"})
    if isinstance(expected, list):
        rows = read_items(tmp_path / "new", settings)
        assert [row[ITEM] for row in rows] == expected
        assert all(value is not None for row in rows for value in row.values())
        return
    with pytest.raises(InputError, match=expected) as caught:
        read_items(tmp_path / "new", settings)
    assert "\n" not in str(caught.value)
