"""Raw files as blocks of whole lines: gzip or plain, of any size, with damage found and named."""

import ast
import glob
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.stage import sha256_file

BLOCK = 8 << 20  # bytes of text that one task parses
_READ = 1 << 20
_HEAD = 1 << 16
_HASHED = 1 << 30
_LONGEST = 256 << 20  # a longer line is no line
# Sniffed by content, since names lie: files called .gz.TRUNCATED or .json that hold gzip are common.
_GZIP = b"\x1f\x8b"
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
            raise InputError(f"{setting}: expected a file, found the folder {path}: use a pattern like {path}/*.json.gz")
        if not matches:
            what = "a file that matches the pattern" if glob.has_magic(pattern) else "the file"
            raise InputError(f"{setting}: expected {what} {pattern}, found none: check the path")
        found += [match for match in matches if match not in found]
    return found


def fingerprint(path: Path) -> str:
    """What tells a file from a changed one, wherever it lies: size and sha256; above 1 GiB the sha256 of its first and
    last MiB and its modification time instead of the whole content."""
    status = Path(path).stat()
    if status.st_size <= _HASHED:
        return f"{status.st_size}/{sha256_file(path)}"
    with open(path, "rb") as stream:
        ends = stream.read(_READ)
        stream.seek(-_READ, 2)
        ends += stream.read(_READ)
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
    packed = raw.startswith(_GZIP)
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
    if raw[:4096].translate(None, _CONTROL) != raw[:4096]:
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


@dataclass
class Block:
    """Whole lines of a file. `first`: how many lines of the file stand before it; `lines`: how many it holds."""

    data: bytes
    first: int
    lines: int


@dataclass
class LineReader:
    """Reads a text file in blocks that end with a line. `position`: bytes of the file read so
    far; `lines`: lines given so far, without the skipped ones.

    quoted: a newline between double quotes does not end a line. skip: lines before the first row (a header).
    keep_damaged: stop at damage in a gzip instead of raising InputError; `damage` then says what it was, and the line
    cut by it (`cut`: 1) is left out.
    """

    source: Source
    quoted: bool = False
    skip: int = 0
    keep_damaged: bool = False
    block: int = BLOCK
    position: int = field(default=0, init=False)
    lines: int = field(default=0, init=False)
    cut: int = field(default=0, init=False)
    damage: str = field(default="", init=False)

    def __iter__(self) -> Iterator[Block]:
        skip = self.skip
        pieces: list[bytes] = []
        size = 0
        started = False
        for piece in self._bytes():
            if not started:
                piece, started = piece.removeprefix(b"\xef\xbb\xbf"), True
            pieces.append(piece)
            size += len(piece)
            if size < self.block:
                continue
            data = b"".join(pieces)
            cut = self._cut(data)
            if cut == 0:
                if size > _LONGEST:
                    raise InputError(f"{self.source.path}: expected lines, found none in {_LONGEST >> 20} MiB of text")
                pieces = [data]
                continue
            pieces, size = [data[cut:]], len(data) - cut
            block, skip = _block(data[:cut], self.lines, skip)
            self.lines += block.lines
            if block.lines:
                yield block
        rest = b"".join(pieces)
        if self.damage:
            cut = rest.rfind(b"\n") + 1
            self.cut, rest = int(len(rest) > cut), rest[:cut]
        whole = self.lines + rest.count(b"\n") - skip
        if self.damage and not self.keep_damaged:
            raise InputError(
                f"{self.source.path}: damaged gzip ({self.damage}): {max(whole, 0):,} rows before the damage are whole"
                f"{' and one is cut' if self.cut else ''}: get the file again, or set data.damaged=keep to use them"
            )
        if rest:
            block, _ = _block(rest, self.lines, skip)
            self.lines += block.lines
            if block.lines:
                yield block

    def _cut(self, data: bytes) -> int:
        cut = data.rfind(b"\n") + 1
        if not self.quoted or data.count(b'"', 0, cut) % 2 == 0:
            return cut
        # Inside quotes: go back to the last newline outside of them. A stray quote must not hold the whole file.
        while cut and len(data) < 8 * self.block:
            before = data.rfind(b"\n", 0, cut - 1) + 1
            if data.count(b'"', before, cut) % 2:
                return before
            cut = before
        return cut

    def _bytes(self) -> Iterator[bytes]:
        with open(self.source.path, "rb") as stream:
            if not self.source.gzip:
                while piece := stream.read(_READ):
                    self.position += len(piece)
                    yield piece
                return
            # gzip.GzipFile loses what it had read when the damage comes; members may follow one another.
            decoder = zlib.decompressobj(31)
            rest = b""
            while piece := stream.read(_READ):
                self.position += len(piece)
                rest += piece
                while rest:
                    if decoder.eof:
                        rest = rest.lstrip(b"\0")  # padding between members is legal
                        if not rest:
                            break
                        if len(rest) < 2:
                            break
                        if not rest.startswith(_GZIP):
                            self.damage = f"no gzip from byte {self.position - len(rest)} on"
                            return
                        decoder = zlib.decompressobj(31)
                    before = decoder.copy()
                    try:
                        text = decoder.decompress(rest)
                    except zlib.error as error:
                        yield from _salvage(rest, before)
                        self.damage = str(error)
                        return
                    rest = decoder.unused_data
                    if text:
                        yield text
            if not decoder.eof:
                yield decoder.flush()
                self.damage = "the file is cut short"


def _salvage(rest: bytes, decoder) -> Iterator[bytes]:
    """What can be read of a damaged piece: a decoder that fails gives nothing of the piece, so go byte by byte."""
    for position in range(len(rest)):
        try:
            if text := decoder.decompress(rest[position : position + 1]):
                yield text
        except zlib.error:
            return


def _block(data: bytes, first: int, skip: int) -> tuple[Block, int]:
    while skip and data:
        cut = data.find(b"\n") + 1
        data, skip = data[cut:] if cut else b"", skip - 1
    return Block(data, first, data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))), skip


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
