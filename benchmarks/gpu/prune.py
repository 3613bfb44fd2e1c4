"""Keep the code of one GPU architecture in a CUDA shared library, so that it compresses.

    python benchmarks/gpu/prune.py IN.so OUT.so 90

A library carries its kernels once for each architecture, in containers of the section .nv_fatbin. The payload of all
entries but one architecture's is zeroed; headers and layout stay, so that the driver walks the containers as before.
libcudf 26.10 goes from 370 MB to 48 MB of xz; driver 580 took it (docs/gpu.md).
"""

import mmap
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = 0xBA55ED50
PTX, CUBIN = 1, 2
_SECTION = b".nv_fatbin"


class Entry(NamedTuple):
    """A kernel file of a container. arch: 90 is sm_90; the payload stands at start:stop."""

    kind: int
    arch: int
    start: int
    stop: int


def prune(source: Path, target: Path, arch: int) -> dict[str, int]:
    """Copy a library with only the cubins for `arch`; if a container has none, those that run on it.

    Returns the containers, those left whole because nothing in them runs on `arch`, and the bytes zeroed.
    ValueError for what is no 64-bit ELF with a section .nv_fatbin.
    """
    shutil.copyfile(source, target)
    found = {"containers": 0, "left_whole": 0, "zeroed_bytes": 0}
    with open(target, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for entries in _containers(data, *_section(data)):
            found["containers"] += 1
            kept = _fitting({entry.arch for entry in entries if entry.kind == CUBIN}, arch)
            if kept is None:
                found["left_whole"] += 1
                continue
            for entry in entries:
                if (entry.kind, entry.arch) != (CUBIN, kept):
                    data[entry.start : entry.stop] = bytes(entry.stop - entry.start)
                    found["zeroed_bytes"] += entry.stop - entry.start
    return found


def _fitting(archs: set[int], wanted: int) -> int | None:
    """The newest architecture whose cubins run on `wanted`: the same major version, not above it."""
    return max((arch for arch in archs if arch // 10 == wanted // 10 and arch <= wanted), default=None)


def _section(data) -> tuple[int, int]:
    """Where .nv_fatbin begins and ends in the file."""
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("expected a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + place * size) for place in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        if data[start : start + len(_SECTION) + 1] == _SECTION + b"\0":
            return offset, offset + length
    raise ValueError("expected a section .nv_fatbin, found none: this is no CUDA library")


def _containers(data, start: int, end: int) -> Iterator[list[Entry]]:
    while start + 16 <= end:
        magic, _, header, size = struct.unpack_from("<IHHQ", data, start)
        if magic != MAGIC:  # the padding between two
            start += 8
            continue
        place, stop = start + header, start + header + size
        entries = []
        while place + 64 <= stop:
            kind, _, length, payload = struct.unpack_from("<HHIQ", data, place)
            (arch,) = struct.unpack_from("<I", data, place + 28)
            if length < 32 or place + length + payload > stop:
                break
            entries.append(Entry(kind, arch, place + length, place + length + payload))
            place += length + payload
        yield entries
        start = stop + (-stop % 8)


if __name__ == "__main__":
    print(prune(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
