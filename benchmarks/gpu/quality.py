"""Trainings of benchmarks/quality.py on a machine that is lent for minutes: many at once, the most wanted first.

    python benchmarks/gpu/quality.py pack beauty/loo yelp/loo --to build/quality          # where the data is
    python benchmarks/gpu/quality.py run JOBS OUT --data build/quality --seconds 420      # on the GPU machine
    python benchmarks/gpu/quality.py merge OUT                                             # where the results are kept

JOBS has a line each: `dataset split model seed [name=NAME] [validation] [key=value ...]`. Settings are added to those
of the recipe and the preset; `validation` fits and ranks the validation items alone, for what is only compared there.
What has not ended at the limit is dropped. OUT gets jobs.jsonl (rows of docs/results, a line a job) and ranks-N.tar of
at most 15 MiB, seconds after a job's end, so that a command that is cut leaves them; `merge` adds both to docs/results
and runs/quality, where quality.py makes the paired tests and pages.

Sixteen trainings fill an H100's 16 cores and, under CUDA's multi-process service (`nvidia-cuda-mps-control -d`), its
device: 30 of Beauty's in five minutes.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from quality_rows import RESULTS, result_rows, store  # noqa: E402
from quality_runs import RUNS, Bench  # noqa: E402

from llmcfsr_merlin.dataset.dataset import Dataset  # noqa: E402
from llmcfsr_merlin.dataset.names import RANKS  # noqa: E402
from llmcfsr_merlin.training.search import try_on_validation  # noqa: E402

_TAR = 15 << 20
_SAVE = 5  # seconds after a job ended: those that end together are saved once
_SAFELY: dict = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian 12's Python has no filters
_UNREAD = ("encoded", "words.safetensors")  # of stage embed: for items that come later


class Carried(Bench):
    """A dataset without the files that its stages were made from."""

    def base(self) -> Dataset:
        run = self.folder / "base"
        dataset = Dataset(
            run / "prepare", run / "embed" if (run / "embed").is_dir() else None, self.config().prepare.max_length
        )
        dataset.run = run
        return dataset


def pack(bases: list[str], to: Path) -> None:
    for base in bases:
        source, target = RUNS / base / "base", to / base
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(target / "base.tar.xz", "w:xz") as archive:
            for name in ("config.json", "ingest/items", "prepare", "embed"):
                if (source / name).exists():
                    archive.add(
                        source / name,
                        f"base/{name}",
                        filter=lambda info: None if Path(info.name).name in _UNREAD else info,
                    )
        print(base, (target / "base.tar.xz").stat().st_size)


def one(line: str, folder: Path) -> None:
    """Run a job; folder/job.json and, of a ranked one, folder/ranks.parquet hold what it found."""
    torch.set_num_threads(1)
    dataset, split, model, seed, *rest = line.split()
    name = next((word[5:] for word in rest if word.startswith("name=")), model)
    settings = [word for word in rest if "=" in word and not word.startswith("name=")]
    start, bench = time.perf_counter(), Carried(dataset, split)
    found: dict = {"line": line, "dataset": dataset, "split": split, "model": name, "seed": int(seed)}
    if "validation" in rest:
        config = bench.config(model, f"model.name={name}", f"train.seed={seed}", *settings)
        found["validation"] = try_on_validation(config, bench.base().without_test(), folder / "work")
    else:
        rows, given, _ = bench.measure(bench.base(), name, model, int(seed), *settings)
        found |= {"rows": rows, "given": given}
        run = bench.folder / f"{name}-{seed}"
        shutil.copy(run / "evaluate" / RANKS, folder / RANKS)
        if (run / "train" / "history.json").is_file():
            found["history"] = json.loads((run / "train" / "history.json").read_text())
    found["seconds"] = round(time.perf_counter() - start, 1)
    (folder / "job.tmp").write_text(json.dumps(found))
    (folder / "job.tmp").rename(folder / "job.json")


def _child(line: str, folder: Path) -> None:
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        one(line, folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # nothing of the interpreter's end is worth waiting for


def run(jobs: Path, out: Path, data: Path, workers: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    for archive in data.glob("*/*/base.tar.xz"):
        target = RUNS / archive.parent.relative_to(data)
        if not (target / "base").is_dir():
            target.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive) as packed:
                packed.extractall(target, **_SAFELY)
    lines = [line for line in jobs.read_text().splitlines() if line.strip() and not line.startswith("#")]
    work = Path("/tmp/quality-jobs") / str(os.getpid())
    waiting, running, done, unsaved = list(enumerate(lines)), {}, 0, None
    fork = multiprocessing.get_context("fork")
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < workers:
            number, line = waiting.pop(0)
            (work / str(number)).mkdir(parents=True)
            child = fork.Process(target=_child, args=(line, work / str(number)))
            child.start()
            running[child] = number, line, time.monotonic()
        time.sleep(0.2)
        for child in [child for child in running if not child.is_alive()]:
            number, line, start = running.pop(child)
            done += 1
            unsaved = unsaved or time.monotonic()
            left = f"{end - time.monotonic():.0f} s left"
            print(f"{done} of {len(lines)} ({time.monotonic() - start:.0f} s, {left}): {line}", flush=True)
            if child.exitcode:
                print("FAILED", (work / str(number) / "log").read_text()[-1500:], flush=True)
        if unsaved and time.monotonic() > unsaved + _SAVE:
            _save(work, out)
            unsaved = None
    for child, (number, line, _) in running.items():
        child.kill()
        log = (work / str(number) / "log").read_text()[-200:]
        print(f"cut: {line}: {log}", flush=True)
    print(f"not begun: {len(waiting)}", flush=True)
    _save(work, out)


def _save(work: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = [
        json.loads(path.read_text()) | {"number": int(path.parent.name)} for path in sorted(work.glob("*/job.json"))
    ]
    (out / "jobs.tmp").write_text("".join(json.dumps(job) + "\n" for job in found))
    (out / "jobs.tmp").rename(out / "jobs.jsonl")
    size, packs = _TAR, []
    for job in found:
        path = work / str(job["number"]) / RANKS
        if path.is_file():
            bytes_more = path.stat().st_size + 2048  # with its header and padding
            if size + bytes_more > _TAR:
                packs.append([])
                size = 0
            packs[-1].append((path, f"{job['dataset']}/{job['split']}/{job['model']}-{job['seed']}/evaluate/{RANKS}"))
            size += bytes_more
    for count, pack in enumerate(packs):
        target = out / f"ranks-{count}.tar"
        with tarfile.open(target.with_suffix(".part"), "w") as archive:
            for path, name in pack:
                archive.add(path, name)
        target.with_suffix(".part").rename(target)


def merge(out: Path, results: Path) -> None:
    for line in (out / "jobs.jsonl").read_text().splitlines():
        job = json.loads(line)
        of = {key: job[key] for key in ("dataset", "split", "model")}
        if "validation" in job:
            print(*of.values(), job["line"], job["validation"])
            continue
        made = {key: job["given"][key] for key in ("version", "commit")}
        store("results.csv.gz", result_rows(job["rows"], job["split"], made), results)
        store("runs.csv", [{**of, "seed": job["seed"], **job["given"]}], results)
    for path in sorted(out.glob("ranks-*.tar")):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            archive.extractall(RUNS, **_SAFELY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("pack")
    verb.add_argument("bases", nargs="+", help="dataset/split")
    verb.add_argument("--to", type=Path, required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("jobs", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--data", type=Path, required=True)
    verb.add_argument("--workers", type=int, default=15)
    verb.add_argument("--seconds", type=float, default=420)
    verb = verbs.add_parser("merge")
    verb.add_argument("out", type=Path)
    verb.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if chosen.verb == "pack":
        pack(chosen.bases, chosen.to)
    elif chosen.verb == "run":
        run(chosen.jobs, chosen.out, chosen.data, chosen.workers, chosen.seconds)
    else:
        merge(chosen.out, chosen.results)


if __name__ == "__main__":
    main()
