"""Text files as blocks of whole lines: gzip or plain, of any size, with damage found and named."""

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmcfsr_merlin.dataset.raw.files import quotes
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect
from llmcfsr_merlin.dataset.raw.files.source import GZIP, Source, recode
from llmcfsr_merlin.runtime.errors import InputError

BLOCK = 8 << 20  # bytes of text per parsing task
_READ = 1 << 20
_UNPACKED = 8 << 20  # bytes of text decompressed at once
# Logs compress 3 to 50 times; deflate's limit is 1032.
_MOST_PACKED, _BOMB = 250, 256 << 20
_LONGEST = 256 << 20  # longer lines are rejected
_MARK = codecs.BOM_UTF8
_OPEN = 8  # blocks that a quoted field may span


@dataclass
class Block:
    """Whole lines of a file. `first`: how many lines of the file stand before it; `lines`: how many it holds."""

    data: bytes
    first: int
    lines: int


@dataclass
class LineReader:
    """Reads a text file in blocks of UTF-8 that end with a line. `position`: bytes of the file read so
    far; `lines`: lines given so far, without the skipped ones.

    dialect: of a delimited file: its lines before the first row are skipped, a newline in a quoted field ends no block.
    keep_damaged: stop at damage in a gzip instead of raising InputError; `damage` then says what it was, and the line
    cut by it (`cut`: 1) is left out.
    """

    source: Source
    dialect: Dialect | None = None
    keep_damaged: bool = False
    block: int = BLOCK
    position: int = field(default=0, init=False)
    lines: int = field(default=0, init=False)
    cut: int = field(default=0, init=False)
    damage: str = field(default="", init=False)

    def __iter__(self) -> Iterator[Block]:
        skip = self.dialect.skip if self.dialect else 0
        pieces: list[bytes] = []
        size = 0
        for piece in self._text():
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
            block, skip = self._block(data[:cut], skip)
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
            block, _ = self._block(rest, skip)
            self.lines += block.lines
            if block.lines:
                yield block

    def above(self, block: Block) -> int:
        """How many lines of the file stand above a block, the skipped ones too."""
        return block.first + (self.dialect.skip if self.dialect else 0)

    def _cut(self, data: bytes) -> int:
        cut = data.rfind(b"\n") + 1
        dialect = self.dialect
        if dialect is None or len(data) > _OPEN * self.block or not quotes.matter(data, dialect.mark, dialect.quoting):
            return cut
        if dialect.quoting != "minimal" and data.count(b'"', 0, cut) % 2 == 0:
            return cut
        # Possibly inside quotes: back to the start of the field. A stray quote must not swallow the file.
        text = dialect.normalised(data[:cut])
        end = quotes.last_boundary(text, dialect.mark, dialect.quoting, dialect.width)
        above = text.count(b"\n", 0, end)
        return end if len(text) == cut else sum(len(line) + 1 for line in data.split(b"\n", above)[:above])

    def _block(self, data: bytes, skip: int) -> tuple[Block, int]:
        """The block without the lines that are skipped, and how many are still to be."""
        while skip and data:
            cut = data.find(b"\n") + 1
            data, skip = data[cut:] if cut else b"", skip - 1
        if not data.isascii() and _MARK in data:  # files that were joined; isascii is much the faster of the two
            data = data.replace(b"\n" + _MARK, b"\n").removeprefix(_MARK)
        if self.dialect and b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            data = _without_lone_returns(data, self.dialect)
        return Block(data, self.lines, data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))), skip

    def _text(self) -> Iterator[bytes]:
        pieces = self._bytes()
        if self.source.encoding != "utf-8":
            pieces = recode(pieces, self.source.path, self.source.encoding)
        if self.source.newline == b"\r":
            pieces = (piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for piece in pieces)
        return pieces

    def _bytes(self) -> Iterator[bytes]:
        with open(self.source.path, "rb") as stream:
            if not self.source.gzip:
                while piece := stream.read(_READ):
                    self.position += len(piece)
                    yield piece
                return
            # gzip.GzipFile discards already decompressed data on damage; members may be concatenated.
            decoder = zlib.decompressobj(31)
            rest, unpacked = b"", 0
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
                        if not rest.startswith(GZIP):
                            self.damage = f"not gzip from byte {self.position - len(rest)} on"
                            return
                        decoder = zlib.decompressobj(31)
                    before = decoder.copy()
                    try:
                        text = decoder.decompress(rest, _UNPACKED)
                    except zlib.error as error:
                        yield from _salvage(rest, before)
                        self.damage = str(error)
                        return
                    rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                    if text:
                        unpacked += len(text)
                        if unpacked > _BOMB and unpacked > _MOST_PACKED * self.position:
                            raise InputError(
                                f"{self.source.path}: expected a compressed log, found {unpacked >> 20:,} MiB of text "
                                f"in {self.position / _READ:.1f} MiB and no end: gunzip it if you trust it"
                            )
                        yield text
            if not decoder.eof:
                yield decoder.flush()
                if not decoder.eof:
                    self.damage = "the file is truncated"


def _salvage(rest: bytes, decoder: "zlib._Decompress") -> Iterator[bytes]:
    """What can be read of a damaged piece: a decoder that fails gives nothing of the piece, so go byte by byte."""
    for position in range(len(rest)):
        try:
            if text := decoder.decompress(rest[position : position + 1]):
                yield text
        except zlib.error:
            return


def _without_lone_returns(data: bytes, dialect: Dialect) -> bytes:
    """Carriage returns that end no line become spaces, or ends of lines where what stands between them are rows."""
    width = dialect.width
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        if b"\r" not in line[:-1]:
            continue
        pieces = line.removesuffix(b"\r").split(b"\r")
        rows = width > 1 and all(dialect.normalised(piece).count(dialect.mark) == width - 1 for piece in pieces)
        lines[number] = (b"\n" if rows else b" ").join(pieces)
    return b"\n".join(lines)
