"""The files of docs/results that benchmarks/quality.py adds to and the pages are made from.

    results.csv.gz  a row each of dataset, split (loo, temporal), rule (masked, kept), protocol (full, sampled), model,
                    seed, group, metric: value, users, and the version and commit that measured it
    runs.csv        a row each of dataset, split, model, seed: what it was given (trials, settings, epochs) and took
    trials.csv      a row a setting that was tried, by validation items alone
    paired.csv.gz   paired tests
    published.csv   papers' figures, with their sources; written by hand

The rows of a run take the place of those of before with the same key. Files are replaced whole, by renaming, under a
lock: a stopped command leaves the rows of before, and several may end at once.
"""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

import llmcfsr_merlin
from llmcfsr_merlin.evaluation.groups import SUMMARY_GROUPS

RESULTS = Path("docs/results")
KEYS = {
    "results.csv.gz": ["dataset", "split", "model", "seed"],
    "runs.csv": ["dataset", "split", "model", "seed"],
    "trials.csv": ["dataset", "split", "model"],
    "paired.csv.gz": ["dataset", "split", "model", "against"],
}
_ORDER = ["dataset", "split", "model", "seed", "rule", "protocol", "group", "metric"]
_DETAIL = "@10"  # what the many small groups are shown at


def store(name: str, rows: Sequence[dict], folder: Path = RESULTS) -> None:
    """Put rows into a file in the place of those of the same key."""
    if not rows:
        return
    new, keys, path = pd.DataFrame(rows), KEYS[name], folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        old = read(name, folder)
        if len(old):
            ours = pd.MultiIndex.from_frame(old[keys].astype(str))
            old = old[~ours.isin(pd.MultiIndex.from_frame(new[keys].astype(str)))]
        frame = pd.concat([old, new], ignore_index=True) if len(old) else new
        columns = [column for column in _ORDER if column in frame]
        frame = frame.sort_values(columns, kind="stable")[[*columns, *frame.columns.difference(columns, sort=False)]]
        temporary = path.with_name(f".{os.getpid()}-{name}")
        packed = {"method": "gzip", "mtime": 0} if name.endswith(".gz") else None  # the same rows, the same file
        frame.to_csv(temporary, index=False, float_format="%.6g", compression=packed, lineterminator="\n")
        temporary.replace(path)


def read(name: str, folder: Path = RESULTS) -> pd.DataFrame:
    """A file's rows; none where it is not there yet."""
    path = folder / name
    return pd.read_csv(path, dtype={"commit": str, "version": str}) if path.is_file() else pd.DataFrame()


def result_rows(metrics: Sequence[dict], split: str, made_by: dict) -> list[dict]:
    """Metric rows of an evaluation as rows of results.csv.gz; small groups (deciles and their like) at 10 alone."""
    kept = (row for row in metrics if row["group"] in SUMMARY_GROUPS or row["metric"].endswith(_DETAIL))
    return [
        {
            "dataset": row["dataset"], "split": split, "rule": row["history"], "protocol": row["protocol"],
            "model": row["recipe"], "seed": row["seed"], "group": row["group"], "metric": row["metric"],
            "value": row["value"], "users": row["count"], **made_by,
        }
        for row in kept
    ]  # fmt: skip


def metric_rows(frame: pd.DataFrame) -> list[dict]:
    """The way back, for the functions of the report: weights are those of the row's own rule."""
    frame = frame.rename(columns={"rule": "history", "model": "recipe", "users": "count"})
    return frame.assign(weights=frame["history"]).to_dict("records")


def made_by() -> dict[str, str]:
    """Version and commit of the code that runs; a star if files other than those of docs/results differ from it.

    Where the code came without git, the commit is COMMIT of the environment.
    """
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/", f":(top,exclude){RESULTS}"]).returncode
    return {
        "version": llmcfsr_merlin.__version__,
        "commit": commit + "*" * bool(changed) if commit else os.environ.get("COMMIT", "unknown"),
    }


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
