"""A stage killed by SIGKILL leaves no half result, goes on where it was, and ends at the same vectors."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.item_vectors import load_item_table
from llmcfsr_merlin.runtime.stage import Manifest, seal
from llmcfsr_merlin.text.embed_stage import run

COUNT = 30_000  # eight shards


def make_run(folder):
    (folder / "ingest" / "items").mkdir(parents=True)
    (folder / "prepare").mkdir()
    ids = [f"i{n}" for n in range(COUNT)]
    titles = [f"{('red', 'blue')[n % 2]} soap {n}" for n in range(COUNT)]
    pq.write_table(pa.table({"item_id": ids, "title": titles}), folder / "ingest" / "items" / "part-00000.parquet")
    pq.write_table(pa.table({"item_id": ids, "code": range(3, COUNT + 3)}), folder / "prepare" / "vocabulary.parquet")
    for stage in ("ingest", "prepare"):
        seal(folder / stage, stage, "key", {})
    return ids


def test_killed_stage_resumes(tiny_bert, tmp_path):
    ids = make_run(tmp_path / "whole")
    make_run(tmp_path / "cut")
    overrides = [f"embed.model={tiny_bert}", "embed.device=cpu", "embed.reduction=pca", "embed.dimension=4"]
    config = Config.load(None, overrides)
    run(config, tmp_path / "whole")
    program = (
        "from pathlib import Path; from llmcfsr_merlin.config.load import Config;"
        "from llmcfsr_merlin.text.embed_stage import run;"
        f"run(Config.load(None, {overrides!r}), Path({str(tmp_path / 'cut')!r}))"
    )
    encoded = tmp_path / "cut" / ".embed.partial" / "encoded"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(encoded.glob("part-*"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in encoded.glob("part-*")}
    assert 2 <= len(done) < 8 and not (tmp_path / "cut" / "embed").exists()
    run(config, tmp_path / "cut")
    Manifest.load(tmp_path / "cut" / "embed").verify(tmp_path / "cut" / "embed")
    final = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "embed" / "encoded").glob("part-*")}
    assert len(final) == 8 and done.items() <= final.items()
    whole, cut = (load_item_table(ids, tmp_path / name / "embed" / "vectors").vectors for name in ("whole", "cut"))
    np.testing.assert_array_equal(whole, cut)
