"""Every row of a file is read, or counted with its reason; what can be read in two ways is refused with the setting."""

import gzip
import json
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.dataset.raw.additions import read_items
from llmcfsr_merlin.dataset.raw.files.source import find_files
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.world import run, write

HEAD = "user_id,item_id,timestamp"
ROWS = [(f"u{n % 3}", f"i{n}", 1_500_000_000 + n) for n in range(6)]
ORDER = [item for _, item, _ in ROWS]


def text(delimiter=",", header=HEAD, tail="", end="\n") -> str:
    """The rows as delimited text; tail: after each row."""
    lines = [header.replace(",", delimiter)] if header else []
    return end.join(lines + [delimiter.join(map(str, row)) + tail for row in ROWS]) + end


def ingested(tmp_path, content, name="log.csv", block=1 << 20, items=None, **settings):
    """Counts, interactions and items of a log (and metadata) in a folder of its own."""
    tmp_path = Path(tempfile.mkdtemp(dir=tmp_path))
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if items is not None:
        (tmp_path / "items").write_bytes(items if isinstance(items, bytes) else items.encode())
        settings["items"] = str(tmp_path / "items")
    return run(tmp_path / "out", 1, block, interactions=str(path), **settings)


FORMS = {
    # name: (content, settings); the six rows come out of each
    "leading blank lines": ("\n\r\n" + text(), {}),
    "trailing blank lines": (text() + "\n\n", {}),
    "blank lines between": (text().replace("\n", "\n\n"), {}),
    "CR line ends": (text(end="\r"), {}),
    "CRLF": (text(end="\r\n"), {}),
    "comma in a quoted name": (text(header=HEAD + ',"price, EUR"', tail=",3"), {}),
    "line break in a quoted name": (text(header=HEAD + ',"price\nEUR"', tail=",3"), {}),
    "line break in a quoted name, CRLF": (text(header=HEAD + ',"price\r\nEUR"', tail=",3", end="\r\n"), {}),
    "sep= of Excel": ("sep=;\n" + text(";"), {}),
    "semicolons and decimal commas": (text(";", HEAD + ",rating", ";4,5"), {}),
    "semicolons and a comma in a name": (text(";", tail=";3,5").replace("timestamp", 'timestamp;"price, EUR"', 1), {}),
    "pipes": (text("|"), {}),
    "Hive's \\x01": (text("\x01"), {}),
    "two colons": (text("::", ""), {"columns": {"names": ["user_id", "item_id", "timestamp"]}}),
    "two colons with a header": (text("::"), {}),
    "any delimiter that is set": (text("~~"), {"delimiter": "~~"}),
    "a delimiter by its name": (text("\t"), {"delimiter": "tab"}),
    "names that fit one delimiter": (
        text(";", "", ";4,5"), {"columns": {"names": ["user_id", "item_id", "timestamp", "rating"]}},
    ),
    "names and a header line": (text(), {"columns": {"names": ["user_id", "item_id", "timestamp"]}}),
    "names other than the header line's": (
        text(header="a,b,c"), {"columns": {"names": ["user_id", "item_id", "timestamp"]}, "header": True},
    ),
    "names above numbers": (text(header="userId,movieId,ts"),
                            {"columns": {"names": ["user_id", "item_id", "timestamp"]}}),
    "names above an odd first row": ("\n".join(text(header="").splitlines()).replace("u0,", "u0,", 1),
                                     {"columns": {"names": ["user_id", "item_id", "timestamp"]}}),
    "aligned by spaces": (text("   ", tail="  ").replace("\nu", "\n  u"), {}),
    "positions": (text(header=""), {"columns": {"user": 0, "item": 1, "time": 2}}),
    "positions under a header": (text(header="a,b,c"), {"columns": {"user": 0, "item": 1, "time": 2}}),
    "row names of R's write.csv": (
        '"user_id","item_id","timestamp"\n' + "".join(f'"{n}","{u}","{i}",{t}\n' for n, (u, i, t) in enumerate(ROWS)),
        {},
    ),
    "row names of R's write.table": (
        '"user_id" "item_id" "timestamp"\n' + "".join(f'"{n}" "{u}" "{i}" {t}\n' for n, (u, i, t) in enumerate(ROWS)),
        {},
    ),
    "a delimiter at the end of each row": (text(tail=","), {}),
    "a delimiter at the end of the header": (text(header=HEAD + ","), {}),
    "all quoted, tabs": ("\n".join('"' + line.replace("\t", '"\t"') + '"' for line in text("\t").splitlines()), {}),
    "UTF-16": (text().encode("utf-16"), {}),
    "UTF-16 without a mark": (text().encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "UTF-8 with a mark": (text().encode("utf-8-sig"), {}),
    "a mark before a quote": (text(header='"user_id",item_id,timestamp').encode("utf-8-sig"), {}),
    "marks of joined files": (text().replace("\nu2,i2", "\n\ufeffu2,i2").encode("utf-8-sig"), {}),
    "tabs, a name in quotes": (text("\t").replace("item_id", '"item_id"'), {}),
    "gzip": (gzip.compress(text().encode()), {}),
    "UTF-16 in gzip, CRLF": (gzip.compress(text(end="\r\n").encode("utf-16")), {}),
    "a lone CR in a field": (text(header="note," + HEAD).replace("u", "a\rb,u").replace("a\rb,user", "user"), {}),
    "CR and LF files joined": (text(end="\r").rstrip("\r") + "\n", {}),
}  # fmt: skip


@pytest.mark.parametrize("block", [1 << 20, 50])
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_text(name, block, tmp_path):
    content, settings = FORMS[name]
    counts, log, _ = ingested(tmp_path, content, block=block, **settings)
    assert log[ITEM].tolist() == ORDER
    assert log["user_id"].tolist() == [user for user, _, _ in ROWS]
    assert log["timestamp"].tolist() == [time for _, _, time in ROWS]
    assert counts["rows_read"] == 6, "blank lines are no rows"


STRAY = {
    # name: (lines after the header `user_id,item_id,timestamp,note`, rows kept)
    "in an id": (['u,"i1,1,a', "u,i2,2,b", "u,i3,3,c"], 3),
    "in a note": (['u,i1,1,"great', "u,i2,2,b", "u,i3,3,c"], 3),
    "on the last line": (["u,i1,1,a", "u,i2,2,b", 'u,i3,3,"c'], 3),
    "closed by another, rows later": (['u,i1,1,"great', *["u,i2,2,b"] * 40, 'u,i3,3,50"', "u,i4,4,d"], 43),
    "closed by another, a row later": (['u,i1,1,"great', 'u,i3,3,50"', "u,i4,4,d"], 3),
    "beside a good field": (['u,i1,1,"great', 'u,i2,2,"a, b"', "u,i3,3,c"], 3),
    "two of them": (['u,i1,1,"great', 'u,i2,2,"also', "u,i3,3,c"], 3),
    "after a line break that is meant": (['u,i1,1,"a\nb"', 'u,i2,2,"great', "u,i3,3,c"], 3),
    "before a line break that is meant": (['u,i2,2,"great', 'u,i1,1,"a\n\nb, c"', "u,i3,3,c"], 3),
    "in the middle of a field": (['u,i1,1,8" pan', 'u,i2,2,9" pan', 'u,i3,3,"10"" pan"'], 3),
    "escaped by a backslash": (['u,"i1\\"",1,a', 'u,i2,2,"b\\", c"', "u,i3,3,c"], 3),
    "with a bad line after it": (['u,i1,1,"great', "u", *["u,i2,2,b"] * 40, 'u,i3,3,50"'], 42),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("block", [1 << 20, 40, 70])
@pytest.mark.parametrize("name", STRAY)
def test_a_stray_quote_costs_no_other_row(name, block, packed, tmp_path):
    lines, kept = STRAY[name]
    data = "\n".join([HEAD + ",note", *lines]).encode()
    counts, log, _ = ingested(tmp_path, gzip.compress(data) if packed else data, block=block)
    assert len(log) == kept
    assert set(log[ITEM].str.strip('"')) == {f"i{n}" for n in range(1, 5)} & set(log[ITEM].str.strip('"'))
    assert counts["rows_read"] == kept + counts["bad_lines"]
    assert log["row"].is_monotonic_increasing and log["row"].is_unique


def test_one_stray_quote_in_many_rows(tmp_path, capsys):
    lines = [f"u{n % 50},i{n % 99},{1_500_000_000 + n},ok" for n in range(30_000)]
    lines[7] = lines[7].replace("ok", '"great stuff')
    counts, log, _ = ingested(tmp_path, "\n".join([HEAD + ",note", *lines]), block=1 << 16)
    assert len(log) == 30_000 and counts["stray_quotes"] == 1
    assert """log.csv:9: 'u7,i7,1500000007,"great stuff'""" in capsys.readouterr().err


def test_quotes_that_are_meant_are_read(tmp_path):
    """Reviews over many lines, with commas, quotes and blank lines; the same as pandas reads them."""
    notes = ['two\n\nlines, "and" more', "a,b\nc,d", "plain", 'ends with a quote"', '"', "x\ny, z\n\n", "a\r\nb", ""]
    frame = pd.DataFrame([(f"u{n}", notes[n % 8], f"i{n}", n, notes[n % 7]) for n in range(400)],
                         columns=["user_id", "note", "item_id", "timestamp", "more"])  # fmt: skip
    frame.to_csv(tmp_path / "log.csv", index=False)
    for block in (1 << 20, 1000, 64):
        counts, log, _ = run(tmp_path / str(block), block=block, interactions=str(tmp_path / "log.csv"))
        assert log[ITEM].tolist() == frame[ITEM].tolist() and counts["bad_lines"] == counts["stray_quotes"] == 0


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


HEADERLESS = {
    # a file of numbers: (content, item order of user 1)
    "user item rating time": ("1\t11\t5\t881250949\n1\t12\t1\t881250940\n", ["12", "11"]),
    "user item time rating": ("1 11 881250949 5\n1 12 881250940 1\n", ["12", "11"]),
    "user item time": ("1,11,881250949000\n1,12,881250940000\n", ["12", "11"]),
    "two colons": ("1::11::5::978300760\n1::12::3::978300275\n", ["12", "11"]),
    "user item": ("1 12\n1 11\n", ["12", "11"]),
}


@pytest.mark.parametrize("name", HEADERLESS)
def test_numbers_without_a_header(name, tmp_path, capsys):
    content, order = HEADERLESS[name]
    _, log, _ = ingested(tmp_path, content)
    assert log.sort_values("timestamp")[ITEM].tolist() == order
    assert "no header line; columns: user_id, item_id" in capsys.readouterr().err
    if "rating" in name or "colons" in name:
        assert sorted(log["rating"]) == sorted({"two colons": [5, 3]}.get(name, [5, 1]))


REFUSED = {
    # name: (content, settings, what the one line says)
    "numbers that may be anything": ("1 11 5\n1 12 3\n", {}, r"expected a header line, found 3 columns.*data.columns="),
    "numbers, two ratings": ("1 11 5 3\n1 12 3 1\n", {}, r"found 4 columns.*user: 0, item: 1"),
    "two times": ("1 11 881250949 881250950\n", {}, r"do not identify themselves"),
    "ambiguous delimiter": ("1;2,5\n1;3,5\n", {}, r"found semicolon or comma: set data.delimiter=semicolon"),
    "duplicate name": (text(header=HEAD + ",item_id", tail=",z"), {}, r"column item_id, found 2 .*\(columns 2, 4\)"),
    "no time": ("user_id,item_id\nu,a\n", {}, r"timestamp or order \(time\).*data.columns.time=null for the order"),
    "text of which no line is a header": ("ann,lamp,1\nbob,vase,2\n", {"columns": {"user": 0, "item": 1, "time": None}},
                                          None),
    "text alone": ("ann,lamp\nbob,vase\n", {"columns": {"user": 0, "item": 1, "time": None}}, r"data.header=true or"),
    "a name too few": ("user_id,item_id,timestamp\n" + "1,u,i,5\n" * 4, {}, r"3 names and 4 columns"),
    "latin-1": (text().replace("i1", "café").encode("latin-1"), {}, r":3: .u1,caf\\xe9.*data.encoding=latin-1"),
    "latin-1 in gzip": (gzip.compress(text().replace("i1", "café").encode("latin-1")), {}, r"data.encoding=latin-1"),
    "latin-1 JSON": ('{"user_id": "é", "item_id": "a", "timestamp": 1}\n'.encode("latin-1"), {}, r":1: .*latin-1"),
    "bytes that are not of the encoding": (b"\x81" + text().encode(), {"encoding": "cp1252"}, r"expected cp1252 text"),
    "lists": ('{"user_id": 1, "item_id": [1, 2], "timestamp": 5}\n', {}, r"found lists in column item_id .*explode"),
    "most rows bad": (text() + "x\n" * 7, {}, r"at most 50% .* found 7 of 13 \(7 bad_lines\); first .*:8: .x"),
    "sep= alone": ("sep=;\n", {}, r"found blank lines only"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", {}, r"`git lfs pull`"),
    "HTML": (b"<!DOCTYPE html>\n<html>404</html>\n", {}, r"found HTML or XML: download the file again"),
    "latin-1 names": ("us\xe9r,item_id,timestamp\nu,a,5\n".encode("latin-1"), {}, r"not UTF-8: set data.encoding"),
    "Feather": (b"ARROW1\0\0" + bytes(50), {}, r"an Arrow \(Feather\) file: export it"),
    "Excel": (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", {}, r"an Excel file: save it as CSV"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused(name, tmp_path):
    content, settings, message = REFUSED[name]
    if message is None:
        assert len(ingested(tmp_path, content, **settings)[1]) == 2
        return
    with pytest.raises(InputError, match=message) as caught:
        ingested(tmp_path, content, **settings)
    assert "\n" not in str(caught.value)


def test_encodings_that_are_set(tmp_path):
    data = text().replace("i1", "café").replace("i2", "cafè").encode("latin-1")
    assert ingested(tmp_path, data, encoding="latin-1")[1][ITEM].tolist()[1:3] == ["café", "cafè"]
    counts, log, _ = ingested(tmp_path, data, block=64, encoding="utf-8")
    assert log[ITEM].tolist() == ["i0", "i3", "i4", "i5"] and counts["not_utf8"] == 2
    lines = [json.dumps(dict(zip(HEAD.split(","), row)) | {"text": "é"}, ensure_ascii=False) for row in ROWS]
    other = "\n".join(lines).encode("latin-1")
    assert ingested(tmp_path, other, "text.json")[1][ITEM].tolist() == ORDER, "bytes of a column that nobody needs"
    with pytest.raises(InputError, match=r"data.encoding.*expected an encoding such as utf-8, .* found 'latin-99'"):
        Config.load(None, ["data.encoding=latin-99"])
    items = "item_id,title\ni0,Léa\n".encode("latin-1")
    with pytest.raises(InputError, match=r"items:2: 'i0,L\\xe9a': set data.item_encoding=latin-1"):
        ingested(tmp_path, text(), items=items)
    assert ingested(tmp_path, text(), items=items, item_encoding="latin-1")[2][TITLE][0] == "Léa"


def test_a_repeated_header_is_no_interaction(tmp_path, capsys):
    """As `cat a.csv b.csv` leaves it; where the file has no times nothing else would show it."""
    content = "user_id,item_id\nu,a\nuser_id,item_id\nu,b\nu,item_id\n"
    counts, log, _ = ingested(tmp_path, content, columns={"time": None})
    assert log[ITEM].tolist() == ["a", "b", "item_id"] and counts["repeated_header"] == 1
    assert "repeated header: 1; first " in (shown := capsys.readouterr().err) and "log.csv:3" in shown
    assert "warning: interactions: 1 of 4 rows (25.0%) could not be read" in shown


def test_what_is_dropped_is_shown_with_its_place(tmp_path, capsys):
    lines = [json.dumps(dict(zip(HEAD.split(","), row))) for row in ROWS] * 100
    lines[333] = "{broken"
    counts, *_ = ingested(tmp_path, "\n".join(lines), block=5000)
    shown = capsys.readouterr().err
    assert "interactions: bad lines: 1; first " in shown and "log.csv:334: '{broken'" in shown
    assert "warning" not in shown, "one of 600"
    assert counts["bad_lines"] == 1
    frame = pd.DataFrame(ROWS, columns=HEAD.split(","))
    frame.loc[4, "user_id"] = None
    frame.to_parquet(tmp_path / "log.parquet", row_group_size=2)
    run(tmp_path / "out", interactions=str(tmp_path / "log.parquet"))
    assert "no user: 1; first " in (shown := capsys.readouterr().err) and "log.parquet:5: " in shown
    items = "item_id,title\n,x\ni0,A\n"
    ingested(tmp_path, text(), items=items)
    assert "items: metadata no item: 1; first " in (shown := capsys.readouterr().err) and "items:2: ',x'" in shown
    ingested(tmp_path, text(), items=items + ",y\n")  # what is not there was read: many are told, not refused
    assert "warning: items: 2 of 3 rows" in capsys.readouterr().err
    wide = "item_id,title\ni0,A\na,b,c\nb,c,d\n"
    with pytest.raises(InputError, match=r"items: expected at most 50% .*found 2 of 3 .*data.max_dropped=0.67"):
        ingested(tmp_path, text(), items=wide)
    ingested(tmp_path, text(), items=wide, max_dropped=0.7)


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


def test_parquet_columns(tmp_path):
    base = pd.DataFrame(ROWS, columns=HEAD.split(","))
    names = ["user_id", "item_id", "timestamp", "item_id"]
    twice = pa.table([*pa.Table.from_pandas(base).columns, pa.array(["z"] * 6)], names=names)
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"one column item_id, found 2 .*columns 2, 4.*data.columns.item=1"):
        run(tmp_path / "a", interactions=str(tmp_path / "twice.parquet"))
    _, log, _ = run(tmp_path / "b", interactions=str(tmp_path / "twice.parquet"), columns={"item": 1})
    assert log[ITEM].tolist() == ORDER
    grouped = base.groupby("user_id", as_index=False).agg({"item_id": list, "timestamp": "min"})
    grouped.to_parquet(tmp_path / "grouped.parquet")
    with pytest.raises(InputError, match=r"lists in column item_id \(already grouped sessions\)"):
        run(tmp_path / "c", interactions=str(tmp_path / "grouped.parquet"))


@pytest.mark.parametrize("pattern", ["log", "log/**/*.parquet", "log/**/*", "log/dt=*/*/part*"])
def test_partition_columns_and_folders(pattern, tmp_path):
    for day in ("2020-01-02", "2020-01-01"):
        folder = tmp_path / "log" / f"dt={day}" / "shop=a%3Ab"
        folder.mkdir(parents=True)
        pd.DataFrame({"user_id": ["u"], "item_id": [day]}).to_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").write_bytes(b"")
    _, log, _ = run(tmp_path / "out", interactions=str(tmp_path / pattern), columns={"time": "dt", "user": "shop"})
    assert log.sort_values("timestamp")[ITEM].tolist() == ["2020-01-01", "2020-01-02"]
    assert log["user_id"].unique().tolist() == ["a:b"]


def test_partition_columns_of_text(tmp_path):
    for name, line in (("log.csv", "user_id,item_id\nu,a\n"), ("log.json", '{"user_id": "u", "item_id": "a"}\n')):
        folder = tmp_path / "dt=2020-01-01"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(line)
        _, log, _ = run(tmp_path / name, interactions=str(folder / name), columns={"time": "dt"})
        assert log["timestamp"].tolist() == [1_577_836_800]


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


def test_patterns(tmp_path):
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "data1").mkdir()
    for name in ("data[1]/a.csv", "data[1]/b[2].csv", "data1/c.csv", "x.csv", "x.csv.gz"):
        (tmp_path / name).write_text("x")
    names = lambda pattern: [path.name for path in find_files([str(tmp_path / pattern)], "data.interactions")]  # noqa: E731
    assert names("data[1]/*.csv") == ["a.csv", "b[2].csv"], "a folder that is there wins"
    assert names("data[1]/b[2].csv") == ["b[2].csv"]
    assert names("data[123]/*.csv") == ["c.csv"]
    with pytest.raises(InputError, match=r"expected each file once, found .*x.csv.gz beside .*x.csv"):
        names("x.*")
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    with pytest.raises(InputError, match=r"the Delta table .*export it"):
        names("delta")
    with pytest.raises(InputError, match=r"use a pattern like .*data1/\*\.csv$"):
        names("data1")


def test_odd_bytes_in_rows_are_counted_alike(tmp_path):
    """NUL in an id stays; a line of them is one bad line."""
    content = text(tail="," + "x" * 99, header=HEAD + ",note").replace("i1", "i\x001").encode() + b"\0\0\0\n"
    counts, log, _ = ingested(tmp_path, content)
    assert log[ITEM].tolist()[1] == "i\x001" and counts["bad_lines"] == 1
