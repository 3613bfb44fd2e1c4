"""kill -9 of the whole process group at random moments of every stage: the same command goes on, to the same content.

LLMCFSR_KILLS says how many (default 12): `LLMCFSR_KILLS=100 make test-slow ARGS="-s tests/integration/test_kills.py"`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llmcfsr_merlin.runtime.layout import STAGES
from llmcfsr_merlin.runtime.stage import Manifest

KILLS = int(os.environ.get("LLMCFSR_KILLS", "12"))
SEED = int(os.environ.get("LLMCFSR_KILLS_SEED", "0"))
SET = [
    argument
    for setting in (
        "data.synthetic_users=250", "data.synthetic_items=120", "train.epochs=3", "model.scorers.network.hidden=16",
        "prepare.max_length=12", "evaluate.sampled_negatives=20", "embed.max_tokens=24", "train.device=cpu",
    )
    for argument in ("--set", setting)
]  # fmt: skip
# Kills of a hundred; `checkpoint` waits in the stage train until one is being written.
SHARES = {"ingest": 10, "prepare": 18, "embed": 18, "train": 14, "checkpoint": 26, "evaluate": 7, "export": 7}
# Times stand in these; NVTabular's own file, which this project never reads, names a temporary folder.
TIMED = ("history.json", "workflow/metadata.json", "workflow/workflow.pkl")


def command(stage: str, run: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "llmcfsr_merlin.cli.main", stage, "demo", "--run", str(run), *SET]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(stage: str, run: Path) -> str:
    process = command(stage, run)
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    return shown


def content(run: Path) -> dict[str, str]:
    """Every file of the finished stages with its checksum; the manifests are checked against the disk."""
    found = {}
    for path in sorted(run.rglob("manifest.json")):
        if path.parent.name == "bundle" or any(part.startswith(".") for part in path.relative_to(run).parts):
            continue
        manifest = Manifest.load(path.parent)
        manifest.verify(path.parent)
        for name, sha256 in manifest.files.items():
            if not name.endswith((*TIMED, "manifest.json")):
                found[str((path.parent / name).relative_to(run))] = sha256
    for path in run.rglob("history.json"):
        epochs = [
            {key: value for key, value in epoch.items() if key != "seconds"} for epoch in json.loads(path.read_text())
        ]
        found[str(path.relative_to(run))] = json.dumps(epochs)
    return found


def writing(run: Path) -> bool:
    """Whether a checkpoint is there that is not whole yet."""
    folders = [
        *run.glob(".train.partial/.checkpoints/checkpoint-*"),
        *run.glob("baselines/.*.partial/.checkpoints/checkpoint-*"),
    ]
    return any(not (folder / "complete.json").exists() for folder in folders)


def kill(stage: str, run: Path, seconds: float, draw: random.Random) -> bool:
    """Start a stage and kill its group at a random moment; False where it had ended before."""
    process = command("train" if stage == "checkpoint" else stage, run)
    started = [run / f".{stage}.partial"] if stage != "checkpoint" else []
    skipped = draw.randrange(6) if stage == "checkpoint" else 0  # which of the checkpoints
    seen = False
    while process.poll() is None:
        if stage == "checkpoint":
            now = writing(run)
            if now and not seen:
                if not skipped:
                    time.sleep(draw.random() * 0.02)
                    break
                skipped -= 1
            seen = now
        elif any(path.exists() for path in started):
            time.sleep(draw.random() * seconds)
            break
        time.sleep(0.0005)
    landed = process.poll() is None
    if landed:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return landed


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_killed_stages_go_on_to_the_same_content(tmp_path):
    draw = random.Random(SEED)
    reference = tmp_path / "reference"
    finish("run", reference)
    expected = content(reference)
    seconds = {stage: Manifest.load(reference / stage).seconds for stage in STAGES}
    seconds["train"] *= 2  # the baseline is another training
    wanted = Counter()
    for stage, share in SHARES.items():
        wanted[stage] = max(1, round(KILLS * share / 100))
    landed, missed, failed = Counter(), Counter(), []
    for stage in sorted(wanted.elements(), key=lambda _: draw.random()):
        verb = "train" if stage == "checkpoint" else stage
        run = tmp_path / "run"
        for _ in range(5):
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            for earlier in STAGES[: STAGES.index(verb)]:
                shutil.copytree(reference / earlier, run / earlier)
            if STAGES.index(verb) > STAGES.index("train"):
                shutil.copytree(reference / "baselines", run / "baselines")
            if kill(stage, run, seconds[verb] * 1.1 + 0.05, draw):
                landed[stage] += 1
                break
            missed[stage] += 1
        else:
            continue
        while draw.random() < 0.2 and kill(stage, run, seconds[verb] * 1.1 + 0.05, draw):
            landed[stage] += 1
        process = command(verb, run)
        shown, _ = process.communicate(timeout=600)
        print(f"{sum(landed.values())} kills, last in {stage}: rerun ended with {process.returncode}", flush=True)
        if process.returncode:
            failed.append((stage, shown[-500:]))
            continue
        found = content(run)
        different = [name for name in found if found[name] != expected[name]]
        different += [name for name in expected if name.startswith(f"{verb}/") and name not in found]
        left = [path.name for path in run.iterdir() if path.name.startswith(".") or ".kept" in path.name]
        if different or left:
            failed.append((stage, different, left))
    print(f"\nkills landed: {sum(landed.values())} {dict(landed)}; ended before: {dict(missed)}; failed: {failed}")
    assert not failed
    assert sum(landed.values()) >= KILLS * 0.8
