"""The same result for any number of workers, any block size, gzip or plain; memory does not grow with the file."""

import gzip
import json
import random

import pandas as pd
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.dataset.names import INTERACTIONS
from llmcfsr_merlin.dataset.raw import ingest as module
from llmcfsr_merlin.dataset.raw.duplicates import RowKeys
from llmcfsr_merlin.dataset.raw.in_order import in_order
from llmcfsr_merlin.dataset.raw.interactions import PartWriter
from llmcfsr_merlin.runtime.stage import sha256_file
from tests.unit.dataset.world import run


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """3,000 reviews and 200 metadata records with bad lines, repeats and missing fields among them."""
    folder, draw = tmp_path_factory.mktemp("raw"), random.Random(1)
    lines = []
    for _ in range(3000):
        chance = draw.random()
        row = {"reviewerID": f"u{draw.randrange(300)}", "asin": f"i{int(draw.paretovariate(1)) % 200}",
               "unixReviewTime": 1_400_000_000 + draw.randrange(1000), "overall": float(draw.randrange(1, 6)),
               "reviewText": "x" * draw.randrange(200)}  # fmt: skip
        if chance < 0.02:
            row.pop("reviewerID")
        lines.append(json.dumps(row) if chance < 0.98 else "{broken" if chance < 0.99 else "")
        if chance > 0.995:
            lines.append(lines[-3] if len(lines) > 3 else "")
    (folder / "reviews.json").write_text("\n".join(lines))
    (folder / "reviews.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    meta = [repr({"asin": f"i{n % 190}", "title": f"Item {n}", "categories": [["a", "b"]]}) for n in range(200)]
    (folder / "meta.json").write_text("\n".join(meta))
    return folder


def files(out) -> dict[str, str]:
    return {str(path.relative_to(out)): sha256_file(path) for path in sorted(out.rglob("*.parquet"))}


@pytest.mark.parametrize("name, workers, block", [
    ("reviews.json.gz", 1, 8 << 20), ("reviews.json", 1, 1000), ("reviews.json.gz", 4, 7777), ("reviews.json", 3, 9999),
])  # fmt: skip
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_the_files_do_not_depend_on_how_they_were_made(raw, tmp_path, name, workers, block, duplicates):
    settings = {"format": "amazon", "items": str(raw / "meta.json"), "duplicates": duplicates}
    expected, *_ = run(tmp_path / "a", interactions=str(raw / "reviews.json"), **settings)
    found, *_ = run(tmp_path / "b", workers, block, interactions=str(raw / name), **settings)
    assert found == expected
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_metadata_parsed_in_processes_are_the_same(raw, tmp_path, monkeypatch):
    settings = {"format": "amazon", "interactions": str(raw / "reviews.json"), "items": str(raw / "meta.json")}
    run(tmp_path / "a", **settings)
    monkeypatch.setattr(module, "_SMALL", 0)
    run(tmp_path / "b", workers=2, block=2000, **settings)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_equal_to_a_plain_loop(raw, tmp_path):
    expected = []
    for number, line in enumerate((raw / "reviews.json").read_text().split("\n")):
        try:
            row = json.loads(line)
            expected.append((row["reviewerID"], row["asin"], row["unixReviewTime"], 0, number, row["overall"]))
        except (ValueError, KeyError):
            continue
    _, log, _ = run(tmp_path / "out", 2, 5000, format="amazon", interactions=str(raw / "reviews.json"))
    assert list(log.itertuples(index=False, name=None)) == expected


def test_no_more_blocks_in_flight_than_workers_can_use(tmp_path):
    """The reader waits for the parsers: else a fast disk fills the memory."""
    from concurrent.futures import ThreadPoolExecutor

    started, done, ahead = [0], [0], []

    def tasks():
        for _ in range(200):
            started[0] += 1
            ahead.append(started[0] - done[0])
            yield lambda: None

    with ThreadPoolExecutor(2) as pool:
        for _ in in_order(pool, tasks(), 2):
            done[0] += 1
    assert max(ahead) <= 5


def test_part_files_are_cut_at_their_size(tmp_path):
    import pyarrow as pa

    sizes = {}
    for step in (1, 7, 100):
        writer = PartWriter(tmp_path / str(step), rows=40, row_group=20)
        for start in range(0, 100, step):
            writer.write(pa.table({"x": list(range(start, min(100, start + step)))}))
        writer.close()
        parts = sorted((tmp_path / str(step)).iterdir())
        sizes[step] = [pq.ParquetFile(part).metadata.num_rows for part in parts]
        assert pd.concat(map(pd.read_parquet, parts))["x"].tolist() == list(range(100))
    assert sizes == {1: [40, 40, 20], 7: [40, 40, 20], 100: [40, 40, 20]}


def test_repeats_are_found_across_blocks(tmp_path):
    import numpy as np

    with RowKeys(tmp_path / "keys") as keys:
        keys.add(np.array([5, 64, 5], np.uint64), np.array([0, 1, 2]))
        keys.add(np.array([64, 128, 5], np.uint64), np.array([10, 11, 12]))
        assert keys.repeated().tolist() == [2, 10, 12]
    assert not (tmp_path / "keys").exists()


@pytest.mark.slow
def test_memory_stays_flat_as_the_file_grows(tmp_path):
    """30 times the rows cost less than 1.5 times the memory. Each run is a process of its own."""
    import subprocess
    import sys

    line = json.dumps({"user_id": "u%07d", "item_id": "i%05d", "timestamp": 1, "text": "x" * 200}).replace('"u%', '"u%')
    peaks = []
    for rows in (50_000, 1_500_000):
        path = tmp_path / "log.json"
        with open(path, "w") as stream:
            stream.writelines(line % (n % 50_000, n % 1000) + "\n" for n in range(rows))
        code = (
            "import sys, resource; from pathlib import Path; from llmcfsr_merlin.config.load import DataConfig\n"
            "from llmcfsr_merlin.dataset.raw.ingest import ingest\n"
            "ingest(DataConfig(interactions=sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        (out := tmp_path / f"out{rows}").mkdir()
        command = [sys.executable, "-c", code, str(path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert len(list((tmp_path / "out1500000" / INTERACTIONS).iterdir())) == 2
    assert peaks[1] < 1.5 * peaks[0] + 50, peaks
