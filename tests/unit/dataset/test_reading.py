"""Every row of a text is read, or counted with its reason; what can be read in two ways is refused with the setting."""

import gzip
import json

import pandas as pd
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.texts import HEAD, ORDER, ROWS, ingested, text
from tests.unit.dataset.world import run

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


def test_odd_bytes_in_rows_are_counted_alike(tmp_path):
    """NUL in an id stays; a line of them is one bad line."""
    content = text(tail="," + "x" * 99, header=HEAD + ",note").replace("i1", "i\x001").encode() + b"\0\0\0\n"
    counts, log, _ = ingested(tmp_path, content)
    assert log[ITEM].tolist()[1] == "i\x001" and counts["bad_lines"] == 1
