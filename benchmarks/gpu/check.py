"""Run the steps of the GPU kit in order of worth, each in a process of its own with a time limit.

    python benchmarks/gpu/check.py OUT                        # all steps, on the GPU; check.sh unpacks the kit first
    python benchmarks/gpu/check.py OUT --step parity serving  # some
    python benchmarks/gpu/check.py OUT --small                # a dry run: tiny sizes, on the CPU if there is no GPU

OUT/<step>.json holds what a step has found so far, OUT/gpu.json all steps and the machine. The table of figures and
goals (report.py) is printed last. The exit code is 1 if a step failed or was cut.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.record import Record, Skip, failure  # noqa: E402
from benchmarks.gpu.report import report  # noqa: E402

MERGED = "gpu.json"
DEADLINES = {1: 300, 2: 220}
_DRY = 3  # times the limit that a dry run has: the machines of CI are slow and busy


class Step(NamedTuple):
    """part: the folder of the kit that it needs. limit: seconds after which it is cut."""

    part: int
    limit: int


STEPS = {
    "machine": Step(1, 60),
    "parity": Step(1, 60),
    "serving": Step(1, 80),
    "training": Step(1, 150),
    "encoding": Step(1, 90),
    "cudf": Step(2, 60),
    "prepare": Step(2, 200),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--step", nargs="+", choices=STEPS, help="run these only")
    parser.add_argument("--part", type=int, choices=(1, 2), help="run the steps that need this folder of the kit only")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the CPU if there is no GPU")
    parser.add_argument("--deadline", type=float, help="seconds after which no step goes on (part 1: 300, part 2: 220)")
    parser.add_argument("--earlier", type=Path, help="folder of results of other steps; these are added to it")
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.child:
        return _run(chosen.child, chosen.out, chosen.small)
    names = chosen.step or [name for name, step in STEPS.items() if chosen.part in (None, step.part)]
    end = time.monotonic() + (chosen.deadline or _deadline(chosen.part) * (_DRY if chosen.small else 1))
    for name in names:
        limit = min(STEPS[name].limit * (_DRY if chosen.small else 1), end - time.monotonic())
        print(f"{name}: at most {max(limit, 0):.0f} s", flush=True)
        _run_limited(name, chosen.out, chosen.small, limit)
        merged = merge(chosen.out, chosen.earlier, chosen.small)
    print(report(merged), flush=True)
    return int(any(merged["steps"][name]["status"] in ("failed", "cut") for name in names))


def _deadline(part: int | None) -> int:
    """Seconds for the steps of a part: both, with the unpacking, end within nine minutes."""
    return sum(seconds for number, seconds in DEADLINES.items() if part in (None, number))


def _run(name: str, out: Path, small: bool) -> int:
    """One step, in this process."""
    record = Record(out / f"{name}.json")
    try:
        import_module(f"benchmarks.gpu.steps.{name}").run(record, small)
    except Skip as reason:
        record.end("skipped", why=str(reason))
    except BaseException as error:
        record.end("failed", **failure(error))
        raise
    else:
        record.end("done" if record.content["status"] == "running" else record.content["status"])
    return 0


def _run_limited(name: str, out: Path, small: bool, limit: float) -> None:
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)
    if limit < 1:
        path.write_text(json.dumps({"status": "cut", "seconds": 0, "found": {}, "why": "no time was left"}) + "\n")
        return
    command = [sys.executable, __file__, str(out), "--child", name, *(["--small"] if small else [])]
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code, why = child.wait(limit), ""
    except subprocess.TimeoutExpired:
        code, why = None, f"cut after {limit:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    content = json.loads(path.read_text()) if path.is_file() else {"status": "running", "found": {}}
    if content["status"] == "running":  # it did not come to its own end
        content |= {"status": "cut" if code is None else "failed", "why": why or f"ended with code {code}"}
        path.with_suffix(".tmp").unlink(missing_ok=True)
    content["seconds"] = round(time.perf_counter() - start, 1)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{name}: {content['status']} after {content['seconds']} s {content.get('why', '')}".rstrip(), flush=True)


def merge(out: Path, earlier: Path | None, small: bool) -> dict:
    """OUT/gpu.json: every step that has a result in `out` or, of the other part of the kit, in `earlier`."""
    steps = {}
    for name in STEPS:
        for folder in filter(None, (out, earlier)):
            if (folder / f"{name}.json").is_file():
                steps[name] = json.loads((folder / f"{name}.json").read_text())
                if earlier is not None and folder == out:
                    earlier.mkdir(parents=True, exist_ok=True)
                    (earlier / f"{name}.json").write_text(json.dumps(steps[name], indent=1) + "\n")
                break
    merged = {
        "date": time.strftime("%Y-%m-%d"), "commit": _commit(), "small": small,
        "machine": steps.get("machine", {}).get("found", {}).get("facts", {}), "steps": steps,
    }  # fmt: skip
    (out / MERGED).write_text(json.dumps(merged, indent=1) + "\n")
    return merged


def _commit() -> str | None:
    """From git, or if the files came without it, from the environment variable COMMIT."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT")


if __name__ == "__main__":
    sys.exit(main())
