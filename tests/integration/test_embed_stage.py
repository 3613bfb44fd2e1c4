"""The stage `embed` on a run directory: skips, resumes, follows its inputs; and on real text where it is at hand."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.item_vectors import load_item_table
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.text.embed_stage import run

DATA = Path(os.environ.get("LLMCFSR_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def make_run(folder, rows, ids, key="one"):
    for stage in ("ingest", "prepare"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / "ingest" / "items").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "ingest" / "items" / "part-00000.parquet")
    codes = list(range(3, 3 + len(ids)))
    pq.write_table(pa.table({"item_id": ids, "code": codes}), folder / "prepare" / "vocabulary.parquet")
    seal(folder / "ingest", "ingest", key, {})
    seal(folder / "prepare", "prepare", key, {})
    return folder


def test_stage_skips_and_follows_its_inputs(tmp_path):
    rows = [{"item_id": f"i{n}", "title": f"shampoo number {n}"} for n in range(6)]
    ids = [row["item_id"] for row in rows]
    folder = make_run(tmp_path / "run", rows, ids)
    config = Config.load(None, ["embed.device=cpu"])
    first = run(config, folder)
    assert run(config, folder) == first
    first.verify(folder / "embed")
    assert first.counts["model"]["name"] == "minilm" and len(first.counts["model"]["sha256"]) == 64
    make_run(folder, [*rows, {"item_id": "new", "title": "guitar"}], [*ids, "new"], key="two")
    second = run(config, folder)
    assert second.counts["cached"] == 6 and second.counts["items"] == 7
    assert load_item_table([*ids, "new"], folder / "embed" / "vectors").vectors.shape == (10, 384)


@pytest.mark.skipif(not (DATA / "amazon_beauty").is_dir(), reason=f"no data in {DATA}; set LLMCFSR_DATA")
def test_real_text(tmp_path):
    with gzip.open(DATA / "amazon_beauty" / "items.jsonl.gz", "rt") as stream:
        rows = [json.loads(next(stream)) for _ in range(60)]
    ids = [row["item_id"] for row in rows]
    folder = make_run(tmp_path / "run", rows, ids)
    run(Config.load(None, ["embed.template=beauty", "embed.device=cpu"]), folder)
    table = load_item_table(ids, folder / "embed" / "vectors")
    similar = table.vectors[3:] @ table.vectors[3:].T - 2 * np.eye(60)
    top = rows[int(similar[0].argmax())]
    assert "Nails" in rows[0]["categories"] and "Nails" in top["categories"]
