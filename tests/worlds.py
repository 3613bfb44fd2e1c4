"""Small worlds for tests: an ingest stage written by hand, so that everything after it runs for real."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import INTERACTIONS, ITEM, ITEMS, RATING, ROW, TIME, USER
from llmcfsr_merlin.runtime.stage import run_stage

BRANDS, KINDS = ("Aurora", "Borealis", "Cirrus", "Dune"), ("shampoo", "lipstick", "perfume", "razor", "soap")


def write_ingest(run_dir: Path, sequences: dict[str, list[str]], items: dict[str, dict] | None = None) -> None:
    """Seal run_dir/ingest: user -> raw item ids in time order, raw id -> attributes."""
    users = [user for user, sequence in sequences.items() for _ in sequence]
    ids = [item for sequence in sequences.values() for item in sequence]
    times = [place for sequence in sequences.values() for place in range(len(sequence))]

    def work(out: Path) -> dict:
        for name in (INTERACTIONS, ITEMS):
            (out / name).mkdir()
        log = {USER: users, ITEM: ids, TIME: times, ROW: range(len(ids)), RATING: pa.nulls(len(ids), pa.float32())}
        pq.write_table(pa.table(log), out / INTERACTIONS / "part-00000.parquet")
        rows = [{ITEM: item, **(items or {}).get(item, {})} for item in dict.fromkeys(ids)]
        pq.write_table(pa.Table.from_pylist(rows), out / ITEMS / "part-00000.parquet")
        return {"rows": len(ids)}

    run_stage(run_dir, "ingest", {"world": [users, ids, items]}, [], work)


def noise(users: int = 400, items: int = 200, length: int = 8, seed: int = 0) -> dict[str, list[str]]:
    """Uniform random sequences without repeats: there is nothing to learn, chance is k / items.

    A repeated item would be found by who remembers histories, more so among negatives from outside of them.
    """
    drawn = np.random.default_rng(seed).random((users, items)).argsort(1)[:, :length]
    return {f"u{user:04d}": [f"i{item:04d}" for item in row] for user, row in enumerate(drawn)}


def attribute_world(users: int = 300, items: int = 120, seed: int = 0) -> tuple[dict, dict]:
    """Sequences that follow attributes: each user buys one kind, brand after brand. Returns sequences and items."""
    random = np.random.default_rng(seed)
    attributes = {
        f"i{item:04d}": {
            "title": f"{BRANDS[item % 4]} {KINDS[item % 5]} no {item}",
            "brand": BRANDS[item % 4],
            "categories": ["Beauty", KINDS[item % 5]],
        }
        for item in range(items)
    }
    sequences = {}
    for user in range(users):
        kind, brand = random.integers(5), random.integers(4)
        sequence = []
        for step in range(random.integers(5, 9)):
            wanted = [i for i in range(items) if i % 5 == kind and i % 4 == (brand + step) % 4]
            sequence.append(f"i{random.choice(wanted):04d}")
        sequences[f"u{user:04d}"] = sequence
    return sequences, attributes
