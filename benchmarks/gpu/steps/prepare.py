"""Stage prepare by benchmarks/gpu/prepare.py: 10 and 100 million rows on the device, on all cores and on two."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.record import Skip

SCRIPT = Path(__file__).resolve().parents[1] / "prepare.py"
ROWS = (10_000_000, 100_000_000)
TWO_CORES = "cpu-2"


def run(record, small: bool) -> None:
    if not SCRIPT.is_file():
        raise Skip(f"there is no {SCRIPT.name}")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "prepare.json"
        command = [sys.executable, SCRIPT, "--out", written, "--scratch", folder]
        command += ["--small", "--rows", "20000"] if small else ["--rows", *map(str, ROWS)]
        script = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        known = None
        while True:
            try:
                code = script.wait(1)
            except subprocess.TimeoutExpired:
                code = None
            known = _note(record, written, known)
            if code is not None:
                break
    errors = [part["error"] for part in record.content["found"].values() if "error" in part]
    if code or errors:
        raise RuntimeError(errors[0] if errors else f"{SCRIPT.name} ended with code {code}")


def _note(record, written: Path, known: str | None) -> str | None:
    """Take over what the script has written since `known`."""
    try:
        text = written.read_text()
        results = json.loads(text)["results"]
    except (OSError, ValueError):  # not there yet, or half written
        return known
    if text != known:
        two_cores = [_speed(entry.get(TWO_CORES, {})) for entry in results]
        for entry in results:
            record(f"{entry['rows']} rows", summary(entry, next(filter(None, two_cores), None)))
    return text


def summary(entry: dict, two_cores: float | None) -> dict:
    """The figures of one size before all that the script says. two_cores: rows/s of two cores, at the largest size that
    they were given: their speed hardly depends on the size (benchmarks/results/preprocess.json)."""
    speed = _speed(entry.get("gpu", {}).get("second") or entry.get("gpu", {}))
    found: dict = {"rows_per_second": speed}
    if speed and two_cores:
        found["times_two_cores"] = round(speed / (_speed(entry.get(TWO_CORES, {})) or two_cores), 1)
    if speed and (all_cores := _speed(entry.get("cpu", {}))):
        found["times_all_cores"] = round(speed / all_cores, 1)
    compared = [entry[name] for name in ("equal_cpu", f"equal_{TWO_CORES}") if name in entry]
    if compared:
        found["equal"] = all(compared)
    failed = [run["failed"] for run in entry.values() if isinstance(run, dict) and "failed" in run]
    if failed:
        found["error"] = "; ".join(failed)
    return found | {"script": entry}


def _speed(run: dict) -> float | None:
    return run.get("rows_per_second")
