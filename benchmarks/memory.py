"""Peak memory of training beside its estimate, into benchmarks/results/memory.json.

    python benchmarks/memory.py --items 100000 1000000

A generated log in which every item occurs, random vectors of 384 dimensions and lexical ones of 128, llm_cfsr, one
epoch.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage as prepare
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_vectors import vectors_column
from llmcfsr_merlin.dataset.names import HAS_TEXT, INTERACTIONS, ITEM, LEXICAL, USER, VECTOR, VECTORS
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.training import train_stage as train
from llmcfsr_merlin.training.memory import training_bytes

RESULT = Path(__file__).parent / "results" / "memory.json"
DIMENSIONS, HISTORY = {VECTORS: 384, LEXICAL: 128}, 200


def measure(items: int, run: Path) -> dict:
    # On a CPU the content score of a million items takes seconds a user; one batch of them is what memory depends on.
    small = ["train.epochs=1", "train.validation_users=128", "prepare.filter=none", "evaluate.baselines=[]"]
    config = Config.load(None, ["name=memory", *small])
    log = run / "ingest" / INTERACTIONS
    log.mkdir(parents=True)
    row = np.arange(items)
    ids = np.char.add("B", np.random.default_rng(0).permutation(items).astype(str))
    users = np.char.add("u", (row // HISTORY).astype(str))
    pq.write_table(pa.table({USER: users, ITEM: ids, "timestamp": row, "row": row}), log / "part-00000.parquet")
    seal(run / "ingest", "ingest", "generated", {})
    prepare.run(config, run)
    for name, dimension in DIMENSIONS.items():
        (run / "embed" / name).mkdir(parents=True)
        for part, start in enumerate(range(0, items, 100_000)):
            some = ids[start : start + 100_000]
            vectors = np.random.default_rng(part).normal(size=(len(some), dimension)).astype(np.float32)
            table = {ITEM: some, VECTOR: vectors_column(vectors), HAS_TEXT: np.ones(len(some), bool)}
            pq.write_table(pa.table(table), run / "embed" / name / f"part-{part:05d}.parquet")
    seal(run / "embed", "embed", "generated", {})
    found = train.run(config, run).peak_memory_mb
    estimate = training_bytes(config.model, Dataset(run / "prepare", run / "embed").shape) >> 20
    return {"items": items, "peak_mb": found, "estimate_mb": estimate, "ratio": round(found / estimate, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    found = []
    for items in arguments.items:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(items, Path(folder)))
        print(found[-1], flush=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
