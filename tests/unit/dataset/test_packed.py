"""A packed file that stands for far more than it says ends early; packed logs are read, however well they pack."""

import gzip
import time
import tracemalloc

import pytest

from llmcfsr_merlin.dataset.raw.files import lines
from llmcfsr_merlin.dataset.raw.files.lines import LineReader
from llmcfsr_merlin.dataset.raw.files.source import sniff
from llmcfsr_merlin.runtime.errors import InputError


def packed(path, block: bytes, times: int):
    with gzip.open(path, "wb", compresslevel=6) as stream:
        for _ in range(times):
            stream.write(block)
    return path


BOMBS = {
    "one line without end": b"x" * (1 << 20),
    "empty lines": b"\n" * (1 << 20),
    "the same row": b"u,i,1\n" * 100_000,
    "zeros behind a header": b"0" * 1023 + b"\n",
}


@pytest.mark.parametrize("block", BOMBS.values(), ids=BOMBS)
def test_a_bomb_ends_early(block, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_BOMB", 16 << 20)
    monkeypatch.setattr(lines, "_LONGEST", 16 << 20)
    path = tmp_path / "log.csv.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b"user_id,item_id,timestamp\nu,i,1\n")
        for _ in range(-(-(256 << 20) // len(block))):
            stream.write(block)
    start, read = time.perf_counter(), 0
    tracemalloc.start()
    with pytest.raises(InputError, match=r"log.csv.gz: expected (a compressed log|lines), found .* MiB") as raised:
        for piece in LineReader(sniff(path)):
            read += len(piece.data)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read < 160 << 20 and most < 128 << 20 and time.perf_counter() - start < 20
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("members", [1, 5])
def test_a_log_that_packs_well_is_read_whole(members, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_BOMB", 1 << 20)
    path, rows = tmp_path / "log.csv.gz", 400_000
    with open(path, "wb") as stream:
        for number in range(members):
            part = range(number * rows // members, (number + 1) * rows // members)
            stream.write(gzip.compress(b"".join(b"user,item%d,1534982400\n" % (row % 1000) for row in part)))
    assert 20 < 23 * rows / path.stat().st_size < 250
    read = b"".join(block.data for block in LineReader(sniff(path)))
    assert read.count(b"\n") == rows


@pytest.mark.parametrize("size", [1, 7, 1 << 12])
def test_unpacking_in_small_pieces_gives_the_same(size, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_UNPACKED", size)
    text = b"".join(b"u%d,i%d,%d\n" % (row, row % 7, row) for row in range(2000))
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(text[:9000]) + gzip.compress(b"") + gzip.compress(text[9000:]))
    assert b"".join(block.data for block in LineReader(sniff(path))) == text
