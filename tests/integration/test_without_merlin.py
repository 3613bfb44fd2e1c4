"""Where Merlin is not installed everything runs by the same commands, and prepare writes the same bytes.

Merlin is taken away by tests/without_merlin in PYTHONPATH, from a process and from all that it starts.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage
from llmcfsr_merlin.dataset.names import WORKFLOW
from llmcfsr_merlin.runtime.manifest import MANIFEST, Manifest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "data.synthetic_users=120", "data.synthetic_items=50", "prepare.max_length=9", "train.epochs=1", "train.device=cpu",
    "evaluate.baselines=[popularity]",
]  # fmt: skip
SERVE = """
import sys
import numpy as np
from llmcfsr_merlin import Recommender
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import Decode, Encode, Rank
from tests.served import served_bundle
from llmcfsr_merlin.dataset import examples
run = sys.argv[1]
history = next(iter(examples.sequences(run).values()))
bundle = served_bundle(run + "/export/model_repo")
encode, rank, decode = (step(bundle, Limits(max_top_k=50)) for step in (Encode, Rank, Decode))
(codes,) = encode([{"HISTORY": np.array([[item.encode() for item in history]], dtype=object)}])
(ranked,) = rank([codes])
(answer,) = decode([{**ranked, "K": codes["K"]}])
found = Recommender.load(run).answer([history], k=answer["ITEMS"].shape[1])
assert [item.decode() for item in answer["ITEMS"][0]] == found.items[0].tolist(), answer
assert not [name for name in sys.modules if name.partition(".")[0] in ("merlin", "nvtabular", "transformers4rec")]
"""
LOOK = """
import importlib.metadata, importlib.util, subprocess, sys
found = [importlib.util.find_spec(name) for name in ("nvtabular", "transformers4rec", "merlin")]
named = [d.metadata["Name"] for d in importlib.metadata.distributions() if d.metadata["Name"] == "nvtabular"]
print(found, named, importlib.util.find_spec("torch").name)
if sys.argv[1:]: subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def without_merlin(*arguments: str) -> str:
    """What a Python without Merlin prints on its standard output; the test fails where it fails."""
    path = os.pathsep.join([str(ROOT / "tests" / "without_merlin"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def llmcfsr(verb: str, run: Path, settings: list[str]) -> None:
    """A verb on the demo with SASRec, which needs no vectors."""
    words = [word for setting in settings for word in ("--set", setting)]
    without_merlin("-m", "llmcfsr_merlin.cli.main", verb, "demo", "--model", "sasrec", "--run", str(run), *words)


def content(stage: Path) -> dict[str, bytes]:
    """File -> bytes, of what a stage wrote without its manifest and without NVTabular's workflow."""
    names = [name for name in Manifest.load(stage).files if not name.startswith(WORKFLOW)]
    assert names
    return {name: (stage / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The demo, smaller, from raw files to the exported model."""
    folder = tmp_path_factory.mktemp("free") / "run"
    llmcfsr("run", folder, SETTINGS)
    return folder


def test_merlin_is_gone_there_and_in_what_is_started():
    assert without_merlin("-c", LOOK, LOOK) == 2 * "[None, None, None] [] torch\n"


def test_the_golden_tests_pass_and_what_is_about_merlin_is_skipped():
    chosen = ("tests/golden", "tests/unit/dataset/test_nvtabular.py")
    found = without_merlin("-m", "pytest", "-p", "no:cacheprovider", "-rs", *chosen)
    assert re.search(r"\d+ passed, 1 skipped", found) and "needs Merlin, which is not installed here" in found


def test_the_run_is_whole_and_says_what_was_left_out(run):
    manifests = {stage: json.loads((run / stage / MANIFEST).read_text()) for stage in ("prepare", "train", "export")}
    assert manifests["prepare"]["counts"]["workflow"] == "left out: NVTabular is not installed"
    assert not (run / "prepare" / WORKFLOW).exists()
    assert not {"nvtabular", "merlin-core", "transformers4rec"} & manifests["train"]["versions"].keys()
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert {row["recipe"] for row in metrics} == {"sasrec", "popularity"}


def test_the_served_steps_answer_as_the_library(run):
    without_merlin("-c", SERVE, str(run))


def test_merlin_would_have_written_the_same(run, tmp_path):
    """And a day on top of it (prepare.extend)."""
    pytest.importorskip("nvtabular")
    theirs = tmp_path / "with"
    shutil.copytree(run / "ingest", theirs / "ingest")
    manifest = prepare_stage.run(Config.load("demo", SETTINGS, "sasrec"), theirs)
    assert manifest.counts["workflow"] == "saved"
    assert content(theirs / "prepare") == content(run / "prepare")
    for name in ("more", "more-with"):
        shutil.copytree(run / "ingest", tmp_path / name / "ingest")
    extended = [*SETTINGS, f"prepare.extend={run / 'prepare'}"]
    llmcfsr("prepare", tmp_path / "more", extended)
    prepare_stage.run(Config.load("demo", extended, "sasrec"), tmp_path / "more-with")
    assert content(tmp_path / "more" / "prepare") == content(tmp_path / "more-with" / "prepare")


def test_doctor_has_no_fault_to_find_with_it():
    code = (
        "from llmcfsr_merlin.runtime.doctor import doctor\n"
        "for check in doctor(execute=lambda code: (1, 'not asked')): print(check.status, check.name)"
    )
    lines = without_merlin("-c", code).splitlines()
    assert "note Merlin" in lines
    assert not [line for line in lines if "nvtabular" in line or "transformers4rec" in line or "merlin-" in line]
