"""Input files: found by pattern, known by content, never by their names."""

import ast
import glob
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.stage import sha256_file

_MIB = 1 << 20
_HEAD = 1 << 16
_HASHED = 1 << 30
# Sniffed by content, since names lie: files called .gz.TRUNCATED or .json that hold gzip are common.
GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file", b"(\xb5/\xfd": "a zstd file",
    b"7z\xbc\xaf": "a 7z archive",
}  # fmt: skip
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\v\x1b"))


@dataclass(frozen=True)
class Source:
    """One input file and what it holds."""

    path: Path
    kind: Literal["json", "literal", "delimited", "parquet"]
    """json: one JSON object a line; literal: one Python literal a line (Amazon 2014); delimited: CSV, TSV, spaces."""
    gzip: bool = False
    head: tuple[str, ...] = ()
    """The first lines of a text file."""

    def records(self) -> list[dict]:
        """The objects on the first lines of a json or literal file; InputError where there is none."""
        found, reason = [], ""
        for line in self.head:
            try:
                record = read_record(line)
            except ValueError as error:
                reason = reason or f"{error}"
                continue
            found.append(record)
        if not found:
            raise InputError(f"{self.path}: expected one JSON object a line, found {_short(self.head[0])} ({reason})")
        return found


def find_files(patterns: Sequence[str], setting: str) -> list[Path]:
    """Files of paths and glob patterns, each pattern's in name order; InputError where one matches none."""
    found: list[Path] = []
    for pattern in patterns:
        if "$" in pattern:
            variable = pattern.partition("$")[2].strip("{").partition("}")[0].partition("/")[0]
            raise InputError(
                f"{setting}: the environment variable {variable} of {pattern} is not set: "
                f"`export {variable}=FOLDER`, or give paths with --set {setting}=[...]"
            )
        path = Path(pattern)
        matches = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        matches = [match for match in matches if not match.is_dir()]
        if path.is_dir():
            raise InputError(f"{setting}: expected a file, found the folder {path}: use a pattern like {path}/*.gz")
        if not matches:
            what = "files that match" if glob.has_magic(pattern) else "a file"
            raise InputError(f"{setting}: expected {what}, found no {pattern!r}: check the path")
        found += [match for match in matches if match not in found]
    return found


def fingerprint(path: Path) -> str:
    """What tells a file from a changed one, wherever it lies: size and sha256; above 1 GiB the sha256 of its first and
    last MiB and its modification time instead of the whole content."""
    status = Path(path).stat()
    if status.st_size <= _HASHED:
        return f"{status.st_size}/{sha256_file(path)}"
    with open(path, "rb") as stream:
        ends = stream.read(_MIB)
        stream.seek(-_MIB, 2)
        ends += stream.read(_MIB)
    return f"{status.st_size}/{status.st_mtime_ns}/{hashlib.sha256(ends).hexdigest()}"


def sniff(path: Path) -> Source:
    """What a file holds, by its first bytes. InputError where it is empty, packed, binary or no list of records."""
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not raw:
        raise InputError(f"{path} is empty: expected rows")
    for magic, what in _PACKED.items():
        if raw.startswith(magic):
            raise InputError(f"{path}: expected plain text, gzip or Parquet, found {what}: unpack it first")
    if raw[257:262] == b"ustar":
        raise InputError(f"{path}: expected plain text, gzip or Parquet, found a tar archive: unpack it first")
    if raw.startswith(b"PAR1"):
        return Source(path, "parquet")
    packed = raw.startswith(GZIP)
    if packed:
        try:
            raw = zlib.decompressobj(31).decompress(raw, _HEAD)
        except zlib.error as error:
            raise InputError(f"{path}: damaged gzip ({error}), 0 whole rows: download it again") from error
        if not raw:
            raise InputError(f"{path}: expected rows, found an empty or cut gzip: download it again")
        if raw[257:262] == b"ustar":
            raise InputError(f"{path}: expected text in the gzip, found a tar archive: unpack it first")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: expected UTF-8 text, found UTF-16: convert it first (iconv -f UTF-16 -t UTF-8)")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if len(raw[:4096].translate(None, _CONTROL)) < 0.99 * len(raw[:4096]):  # one odd line is a bad line
        raise InputError(f"{path}: expected text (JSON lines, CSV) or Parquet, found binary data")
    lines = raw.split(b"\n")
    head = [line.decode("utf-8", "replace").strip("\r") for line in (lines[:-1] or lines)[:200]]
    head = tuple(line for line in head if line.strip())
    if not head:
        raise InputError(f"{path}: expected rows, found blank lines only")
    first = head[0].lstrip()
    if first.startswith("["):
        raise InputError(f"{path}: expected one JSON object a line, found a JSON array: rewrite it with `jq -c '.[]'`")
    if first == "{":
        raise InputError(f"{path}: expected one JSON object a line, found indented JSON: rewrite it with `jq -c .`")
    kind = "json" if first.startswith("{") else "delimited"
    if kind == "json" and not any(map(_is_json, head)) and any(map(_is_literal, head)):
        kind = "literal"
    return Source(path, kind, packed, head)


def read_record(line: str) -> dict:
    """One line as JSON, else as a Python literal (Amazon 2014); ValueError where it is neither or no object."""
    try:
        record = json.loads(line)
    except ValueError as error:
        if not _is_literal(line):
            raise
        try:
            record = ast.literal_eval(line.strip())
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
