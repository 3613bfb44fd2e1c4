"""Whether runs of stage prepare wrote the same, by bytes or else by rows."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TABLES = ("sequences", "train", "valid", "test")


def compare(entry: dict, written: dict[str, Path]) -> None:
    """Add to `entry`, reports by run, how the output of each run equals that of the GPU, and how much faster it was."""
    if "gpu" not in written:
        return
    gpu = entry["gpu"].get("second") or entry["gpu"]
    for kind in [kind for kind in written if kind != "gpu" and f"equal_{kind}" not in entry]:
        same = files(written["gpu"]) == files(written[kind])
        entry[f"equal_{kind}"] = "bytes" if same else "rows" if rows(written["gpu"]) == rows(written[kind]) else False
        if "seconds" in gpu and "seconds" in entry[kind]:
            entry[f"times_{kind}"] = round(entry[kind]["seconds"] / gpu["seconds"], 1)


def files(out: Path) -> dict[str, str]:
    """sha256 of each written file but the workflow, whose bytes name a folder."""
    paths = sorted(path for path in out.rglob("*") if path.is_file() and "workflow" not in path.parts)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), paths)
        return {str(path.relative_to(out)): digest for path, digest in zip(paths, digests)}


def rows(out: Path) -> dict[str, str]:
    """Hash of each table's users, lengths and codes in order, over any number of part files."""
    found = {"vocabulary": hashlib.sha256((out / "vocabulary.parquet").read_bytes()).hexdigest()}

    def of(name: str) -> str:
        parts = [hashlib.sha256() for _ in range(4)]
        for path in sorted((out / name).glob("*.parquet")):
            table = pq.read_table(path)
            users = pa.concat_arrays(table["user_id"].chunks)
            lists = pa.concat_arrays(table["item_id"].chunks)
            parts[0].update("".join(users.to_pylist()).encode())
            parts[1].update(pc.binary_length(users).to_numpy().tobytes())
            parts[2].update(lists.value_lengths().to_numpy().tobytes())
            parts[3].update(lists.flatten().to_numpy().tobytes())
        return "".join(part.hexdigest() for part in parts)

    with ThreadPoolExecutor(len(TABLES)) as pool:
        return found | dict(zip(TABLES, pool.map(of, TABLES)))
