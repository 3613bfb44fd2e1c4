"""Text files as blocks of whole lines: gzip or plain, of any size, with damage found and named."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmcfsr_merlin.data.source import GZIP, Source
from llmcfsr_merlin.errors import InputError

BLOCK = 8 << 20  # bytes of text that one task parses
_READ = 1 << 20
_UNPACKED = 8 << 20  # bytes of text that are unpacked at once
# Logs pack 3 to 50 times; deflate itself ends at 1032.
_MOST_PACKED, _BOMB = 250, 256 << 20
_LONGEST = 256 << 20  # a longer line is no line


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
                            self.damage = f"no gzip from byte {self.position - len(rest)} on"
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
                                f"{self.source.path}: expected a packed log, found {unpacked >> 20:,} MiB of text in "
                                f"{self.position / _READ:.1f} MiB and no end: unpack it (gunzip) if you know it is one"
                            )
                        yield text
            if not decoder.eof:
                yield decoder.flush()
                if not decoder.eof:
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
