"""benchmarks/gpu/quality.py: packed data, trainings side by side under a limit, results merged."""

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.runtime.layout import resource

SCRIPT = resource("pipelines").parent / "benchmarks" / "gpu" / "quality.py"
JOBS = """\
demo loo sasrec 1 train.epochs=1 name=short
demo loo gru4rec 1 validation train.epochs=1
demo loo sasrec 2 train.epochs=none
demo loo sasrec 3 train.epochs=100000 train.patience=100000
"""


@pytest.mark.slow
def test_what_ends_in_time_is_kept_and_merged(tmp_path):
    if not SCRIPT.is_file():
        pytest.skip("benchmarks/ stands beside the package in a checkout only")
    home, lent = tmp_path / "home", tmp_path / "lent"
    for folder in (home, lent):
        folder.mkdir()
    run_stages(Config.load("demo"), home / "runs/quality/demo/loo/base", ("ingest", "prepare"))
    (lent / "jobs").write_text(JOBS)

    def call(cwd, *arguments) -> str:
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"COMMIT": "abc"})
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    call(home, "pack", "demo/loo", "--to", lent / "data")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(call, lent, "run", "jobs", "out", "--data", "data", "--workers", 2, "--seconds", 200)
        while not run.done() and not (lent / "out/jobs.jsonl").is_file():
            time.sleep(0.2)
        assert not run.done()  # what has ended is saved while another still trains
        said = run.result()
    assert "3 of 4" in said and "FAILED" in said and "cut: demo loo sasrec 3" in said
    found = {job["model"]: job for job in map(json.loads, (lent / "out/jobs.jsonl").read_text().splitlines())}
    assert set(found) == {"short", "gru4rec"} and 0 < found["gru4rec"]["validation"]["network ndcg@10"] < 1
    call(home, "merge", lent / "out", "--results", home / "results")
    with gzip.open(home / "results/results.csv.gz", "rt") as file:
        assert {(row["model"], row["seed"], row["dataset"]) for row in csv.DictReader(file)} == {("short", "1", "demo")}
    assert (home / "runs/quality/demo/loo/short-1/evaluate/ranks.parquet").is_file()
