"""Input files: found by pattern; the file type is detected from the first bytes, never from the name."""

import codecs
import glob
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.literals import literal
from llmcfsr_merlin.runtime.stage import sha256_file

_MIB = 1 << 20
_HEAD = 1 << 16
_HASHED = 1 << 30
# Detected by content: files named .gz.TRUNCATED, or .json that contain gzip, are common.
GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file", b"(\xb5/\xfd": "a zstd file",
    b"7z\xbc\xaf": "a 7z archive",
}  # fmt: skip
_OTHER = {
    b"ARROW1": "an Arrow (Feather) file", b"ORC": "an ORC file", b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite database", b"\x89HDF": "an HDF5 file", b"\xd0\xcf\x11\xe0": "an Excel file",
}  # fmt: skip
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\v\x1b\x01"))  # \x01 delimits the text files of Hive
_BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_ROWS = 200  # bytes at the start of a text file that are examined
# Files that Spark, Delta and others write beside their part files.
_MARKERS = re.compile(r"_SUCCESS|_metadata|_common_metadata|_committed_.*|_started_.*|_delta_log|.*\.crc")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


Kind = Literal["json", "literal", "delimited", "parquet"]


@dataclass(frozen=True)
class Source:
    """One input file and its detected type."""

    path: Path
    kind: Kind
    """json: one JSON object per line; literal: one Python literal per line (Amazon 2014); delimited: CSV, TSV,
    spaces."""
    gzip: bool = False
    head: tuple[str, ...] = ()
    """The first lines of a text file that are not blank."""
    start: str = ""
    """The first lines of a text file as they are, with line ends \\n or \\r\\n."""
    encoding: str = "utf-8"
    encoding_set: bool = False
    """Whether the settings name the encoding: else bytes that do not fit are refused rather than dropped."""
    newline: bytes = b"\n"
    """b"\\r" if that alone ends most lines."""

    @property
    def partitions(self) -> dict[str, str | None]:
        """The columns that stand in the names of its folders, as in dt=2020-01-01/part-0.parquet."""
        found = {}
        for name in self.path.parts[:-1]:
            key, separator, value = name.partition("=")
            if separator and key:
                found[key] = None if value == _NULL_PARTITION else unquote(value)
        return found

    def records(self) -> list[dict]:
        """The objects on the first lines of a json or literal file; InputError if there is none."""
        found, reason = [], ""
        for line in self.head:
            try:
                record = read_record(line)
            except ValueError as error:
                reason = reason or f"{error}"
                continue
            found.append(record)
        if not found:
            raise InputError(f"{self.path}: expected one JSON object per line, found {_short(self.head[0])} ({reason})")
        return found


def find_files(patterns: Sequence[str], setting: str) -> list[Path]:
    """Files of paths, folders of Parquet and glob patterns, each one's in name order.

    A path that is there is taken as it is, even if it has brackets in it. InputError if one matches nothing, or both
    a file and its packed copy.
    """
    found: list[Path] = []
    for pattern in patterns:
        if "$" in pattern and not Path(pattern).exists():
            variable = pattern.partition("$")[2].strip("{").partition("}")[0].partition("/")[0]
            raise InputError(
                f"{setting}: the environment variable {variable} of {pattern} is not set: "
                f"`export {variable}=FOLDER`, or give paths with --set {setting}=[...]"
            )
        path = Path(pattern)
        if path.is_dir():
            matches = _folder(path, setting)
        elif path.exists():
            matches = [path]
        else:
            matches = [Path(name) for name in sorted(glob.glob(_literal_first(pattern), recursive=True))]
            matches = [match for match in matches if not match.is_dir() and not _MARKERS.fullmatch(match.name)]
        if not matches:
            what = "files that match" if glob.has_magic(pattern) else "a file"
            raise InputError(f"{setting}: expected {what}, found no {pattern!r}: check the path")
        twice = [match for match in matches if match.suffix == ".gz" and match.with_suffix("") in matches]
        if twice:
            raise InputError(
                f"{setting}: expected each file once, found {twice[0]} beside {twice[0].with_suffix('')}: "
                f"give a pattern that matches one of them"
            )
        found += [match for match in matches if match not in found]
    return found


def _folder(path: Path, setting: str) -> list[Path]:
    if (path / "_delta_log").is_dir():
        raise InputError(
            f"{setting}: expected files, found the Delta table {path}, whose folder also contains deleted rows: "
            "export it as Parquet first"
        )
    files = sorted(file for file in path.rglob("*.parquet") if file.is_file())
    hidden = [file for file in files if any(part[0] in "._" for part in file.relative_to(path).parts)]
    files = [file for file in files if file not in set(hidden)]
    if not files:
        raise InputError(
            f"{setting}: expected a file, found the folder {path} without Parquet: use a pattern like "
            f"{path}/*{_ending(path)}"
        )
    return files


def _ending(folder: Path) -> str:
    """Of the first file in a folder, such as .csv or .csv.gz."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name[0] not in "._")
    return "".join(Path(names[0]).suffixes[-2:]) if names else ".gz"


def _literal_first(pattern: str) -> str:
    """The pattern with existing folders escaped: data[1]/*.csv is ambiguous."""
    parts = Path(pattern).parts
    base = Path()
    for number, part in enumerate(parts):
        if not (base / part).exists():
            return str(Path(glob.escape(str(base)), *parts[number:]))
        base /= part
    return glob.escape(pattern)


def fingerprint(path: Path) -> str:
    """A file's fingerprint, independent of its path: size and sha256; above 1 GiB the sha256 of its first and
    last MiB and its modification time instead of the whole content."""
    status = Path(path).stat()
    if status.st_size <= _HASHED:
        return f"{status.st_size}/{sha256_file(path)}"
    with open(path, "rb") as stream:
        ends = stream.read(_MIB)
        stream.seek(-_MIB, 2)
        ends += stream.read(_MIB)
    return f"{status.st_size}/{status.st_mtime_ns}/{hashlib.sha256(ends).hexdigest()}"


def sniff(path: Path, encoding: str | None = None) -> Source:
    """Detect a file's type from its first bytes. InputError if it is empty, an archive, binary or not a list of
    records.

    encoding: of text; None: UTF-8, or UTF-16 or UTF-32 with a byte order mark.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not raw:
        raise InputError(f"{path} is empty: expected rows (rewrite it, or leave it out)")
    _no_archive(path, raw)
    if raw.startswith(b"PAR1"):
        return Source(path, "parquet")
    packed = raw.startswith(GZIP)
    if packed:
        try:
            raw = zlib.decompressobj(31).decompress(raw, _HEAD)
        except zlib.error as error:
            raise InputError(f"{path}: damaged gzip ({error}), 0 whole rows: download it again") from error
        if not raw:
            raise InputError(f"{path}: expected rows, found an empty or truncated gzip: download it again")
        if raw[257:262] == b"ustar":
            raise InputError(f"{path}: expected text in the gzip, found a tar archive: extract it first")
    codec = encoding or next((name for bom, name in _BOMS.items() if raw.startswith(bom)), "utf-8")
    if codec != "utf-8":
        raw = next(recode([raw], path, codec, whole=False), b"")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if len(raw[:4096].translate(None, _CONTROL)) < 0.99 * len(raw[:4096]):  # a single odd line counts as a bad row
        raise InputError(
            f"{path}: expected text (JSON lines, CSV) or Parquet, found binary data "
            "(text in another encoding: data.encoding, data.item_encoding)"
        )
    lone = raw.count(b"\r") - raw.count(b"\r\n")
    newline = b"\r" if lone > raw.count(b"\n") else b"\n"
    raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if newline == b"\r" else raw
    lines = raw.split(b"\n")
    if len(lines) > 1 and (len(raw) > _HEAD - 8 or not lines[-1]):
        lines.pop()  # truncated, or empty
    text = [line.decode("utf-8", "replace") for line in lines]
    head = tuple(line.strip("\r") for line in text[: _ROWS + 50] if line.strip())[:_ROWS]
    if not head:
        raise InputError(f"{path}: expected rows, found blank lines only")
    first = head[0].lstrip()
    if first.startswith("["):
        raise InputError(f"{path}: expected one JSON object per line, found a JSON array: convert it by `jq -c '.[]'`")
    if first == "{":
        raise InputError(f"{path}: expected one JSON object per line, found indented JSON: rewrite it with `jq -c .`")
    if first.startswith("version https://git-lfs"):
        raise InputError(f"{path}: expected rows, found a Git LFS pointer: fetch the file with `git lfs pull`")
    if first.lower().startswith(("<!doctype", "<html", "<?xml")):
        raise InputError(f"{path}: expected rows, found HTML or XML: download the file again, or convert it to CSV")
    kind: Kind = "json" if first.startswith("{") else "delimited"
    if kind == "json" and not any(map(_is_json, head)) and any(map(_is_literal, head)):
        kind = "literal"
    return Source(path, kind, packed, head, "\n".join(text) + "\n", codec, encoding is not None, newline)


def recode(pieces: Iterable[bytes], path: Path, encoding: str, whole: bool = True) -> Iterator[bytes]:
    """Text of another encoding as UTF-8, piece by piece. whole: the last piece ends the text."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in pieces:
            if text := decoder.decode(piece):
                yield text.encode("utf-8", "backslashreplace")
        if whole and (text := decoder.decode(b"", final=True)):
            yield text.encode("utf-8", "backslashreplace")
    except UnicodeError as error:
        raise InputError(
            f"{path}: expected {encoding} text, found bytes that are none ({' '.join(str(error).split())}): check "
            "data.encoding (data.item_encoding for metadata)"
        ) from error


def _no_archive(path: Path, raw: bytes) -> None:
    if raw.startswith(b"PK\x03\x04") and (b"[Content_Types].xml" in raw or b"xl/" in raw[:4096]):
        raise InputError(f"{path}: expected plain text, gzip or Parquet, found an Excel file: save it as CSV UTF-8")
    for magic, what in _PACKED.items():
        if raw.startswith(magic):
            raise InputError(f"{path}: expected plain text, gzip or Parquet, found {what}: unpack it first")
    for magic, what in _OTHER.items():
        if raw.startswith(magic):
            raise InputError(f"{path}: expected plain text, gzip or Parquet, found {what}: export it as Parquet or CSV")
    if raw[257:262] == b"ustar":
        raise InputError(f"{path}: expected plain text, gzip or Parquet, found a tar archive: extract it first")


def read_record(line: str) -> dict:
    """One line as JSON, else as a Python literal (Amazon 2014); ValueError if it is neither or no object."""
    try:
        record = json.loads(line)
    except ValueError as error:
        if not _is_literal(line):
            raise
        try:
            record = literal(line.strip())
        except (SyntaxError, MemoryError, RecursionError):
            raise error from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    return record


def _is_literal(line: str) -> bool:
    return line.lstrip().startswith(("{'", "{u'"))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
