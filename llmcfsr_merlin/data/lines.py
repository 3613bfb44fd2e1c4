"""Text files, gzip or plain, as blocks of whole lines: memory stays at one block whatever the size of the file."""

import glob
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcfsr_merlin.errors import InputError

BLOCK = 8 << 20  # bytes of text
_GZIP = b"\x1f\x8b"


@dataclass
class Block:
    """Whole lines of one file; `first`: position of the first one among the lines of all files."""

    path: Path
    data: bytes
    first: int


def find_files(patterns: Sequence[str], what: str) -> list[Path]:
    """Files of the given paths and glob patterns, in the order given; InputError where one matches nothing."""
    found: list[Path] = []
    for pattern in patterns:
        if "$" in pattern:
            raise InputError(f"{what}: the environment variable in {pattern!r} is not set: export it, or give a path")
        paths = [Path(path) for path in sorted(glob.glob(pattern))] or [Path(pattern)]
        for path in paths:
            if not path.is_file():
                raise InputError(f"{what}: expected a file or a pattern that matches files, found no {pattern!r}")
        found += paths
    return list(dict.fromkeys(found))


def read_blocks(
    paths: Sequence[Path], *, keep_damaged: bool, damaged: dict[str, int], size: int = BLOCK
) -> Iterator[Block]:
    """Whole lines of the files, in order. A last line without a newline is whole, unless the file is damaged.

    A damaged gzip raises InputError with the number of whole lines before the damage; with keep_damaged these lines are
    read and `damaged` gets the file's name and that number.
    """
    position = 0
    for path in paths:
        start, rest, reason = position, b"", None
        try:
            for data in _unpacked(path, size):
                rest += data
                if len(rest) >= size and (cut := rest.rfind(b"\n") + 1):
                    yield Block(path, rest[:cut], position)
                    position += rest.count(b"\n", 0, cut)
                    rest = rest[cut:]
        except _Damaged as error:
            reason, rest = error, rest[: rest.rfind(b"\n") + 1]
        if rest:
            yield Block(path, rest, position)
            position += rest.count(b"\n") + (not rest.endswith(b"\n"))
        if reason:
            damaged[str(path)] = position - start
            if not keep_damaged:
                raise InputError(
                    f"{path}: expected a whole gzip file, found one that is damaged after {position - start:,} whole "
                    f"lines ({reason}): fetch it again, or keep these lines with data.damaged=keep"
                )


class _Damaged(Exception):
    pass


def _unpacked(path: Path, size: int) -> Iterator[bytes]:
    """The file's bytes, unpacked where its first bytes say gzip (names lie: `.gz.TRUNCATED`); _Damaged at the end.

    zlib instead of the gzip module, which loses what it had unpacked before the damage.
    """
    with open(path, "rb") as stream:
        packed = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        if not packed:
            while data := stream.read(size):
                yield data
            return
        unpacker = zlib.decompressobj(wbits=31)
        while data := stream.read(1 << 20):
            while data:
                if unpacker.eof:  # a gzip may have several members; zeros after the last one are padding
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    unpacker = zlib.decompressobj(wbits=31)
                try:
                    yield unpacker.decompress(data)
                except zlib.error as error:
                    raise _Damaged(str(error)) from error
                data = unpacker.unused_data
        if not unpacker.eof:
            raise _Damaged("it ends too early")
