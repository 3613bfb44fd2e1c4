"""Training by benchmarks/gpu/training.py: speed beside a plain loop and two CPU cores, the same curve as on the CPU."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.common import BEAUTY
from benchmarks.gpu.record import Skip

SCRIPT = Path(__file__).resolve().parents[1] / "training.py"
MODELS = ("llm_cfsr", "sasrec")


def run(record, small: bool) -> None:
    if not SCRIPT.is_file():
        raise Skip(f"there is no {SCRIPT.name}")
    training = import_module("benchmarks.gpu.training")
    two_cores = record.part("two cores", lambda: on_two_cores(small))

    def save(found: dict) -> None:
        for name, value in (figures(found, two_cores) | found).items():
            record(name, value)

    save(training.run(small, save))


def figures(found: dict, two_cores: dict[str, float]) -> dict:
    """The figures of the table (report.py) out of what the script has found so far."""
    made = {}
    for model in MODELS:
        speeds = {
            tuple(label.split(", ")[1:]): value["sequences_per_second"]
            for label, value in found.get("speed", {}).items() if label.startswith(f"{model},")
        }  # fmt: skip
        trainer = {precision: value for (precision, how), value in speeds.items() if how == "trainer"}
        if not trainer:
            continue
        best = max(trainer, key=trainer.__getitem__)
        made[f"{model} speed"] = entry = {"sequences_per_second": trainer[best], "precision": best}
        if (plain := speeds.get(("float32", "plain loop"))) is not None:
            entry["share_of_plain_loop"] = round(trainer.get("float32", 0) / plain, 3)
        if two_cores.get(model):
            entry["times_two_cores"] = round(trainer[best] / two_cores[model], 1)
    curves = found.get("curve", {})
    for name, one, other in (
        ("same as CPU", "device, float32", "cpu"),
        ("resume", "device, stopped after an epoch", "device, float32"),
    ):
        if one in curves and other in curves:
            here, there = (curves[label]["ndcg@10"][-1] for label in (one, other))
            made[name] = {"relative_difference": abs(here - there) / max(abs(there), 1e-9), "ndcg@10": [here, there]}
    return made


def on_two_cores(small: bool) -> dict:
    """Sequences a second of each model on two cores of this machine, of an epoch of some thousand users."""
    users = 200 if small else 2000
    items = 300 if small else BEAUTY[1]
    cores = sorted(os.sched_getaffinity(0))[: 1 if small else 2]  # two threads wait on each other where others work
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(users), str(items), *MODELS],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(len(cores))},
        preexec_fn=lambda: os.sched_setaffinity(0, cores), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    return {"users": users, "cores": len(cores)} | json.loads(done.stdout.splitlines()[-1])


_ALONE = """
import json, sys, tempfile
from pathlib import Path
from benchmarks.gpu.training import speed, write_log
users, items = map(int, sys.argv[1:3])
with tempfile.TemporaryDirectory() as folder:
    files = write_log(Path(folder), users, items)
    found = {name: speed(files, name, items, "float32", "trainer", 1)["sequences_per_second"] for name in sys.argv[3:]}
print(json.dumps(found))
"""
