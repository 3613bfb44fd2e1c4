"""A run folder as the command line meets it: full disks, two at a time, modes, damage, and what is not ours."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.runtime.layout import STAGES
from llmcfsr_merlin.runtime.lock import LOCK
from llmcfsr_merlin.runtime.stage import Manifest

RECIPE = """
name: shop
data: {format: synthetic, synthetic_users: 120, synthetic_items: 40}
prepare: {min_item: 2, max_length: 12}
embed: {max_tokens: 16}
model: {hidden: 16}
train: {epochs: 2, device: cpu}
evaluate: {sampled_negatives: 10, baselines: [popularity, sasrec]}
"""


def llmcfsr(*words, limits=(), umask=None) -> subprocess.CompletedProcess:
    """The real command in a process of its own, with limits as (kind, value)."""

    def prepare():
        if umask is not None:
            os.umask(umask)
        for kind, value in limits:
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))

    command = [sys.executable, "-m", "llmcfsr_merlin.cli.main", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, preexec_fn=prepare,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "shop.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def made(recipe, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    done = llmcfsr("run", recipe, "--run", run, umask=0o027)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def one_line(done: subprocess.CompletedProcess) -> str:
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and line.startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    return line


def test_every_file_of_a_run_has_the_mode_of_the_umask(made):
    for path in [made, *made.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
    assert not (made / LOCK).exists()


def test_a_second_writer_is_refused_by_name_and_readers_are_not(recipe, run, capsys, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from llmcfsr_merlin.runtime.lock import run_lock\n"
         "with run_lock(sys.argv[1]): print('held', flush=True); time.sleep(600)", run],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    before = (run / "config.json").read_bytes()
    (tmp_path / "new.jsonl").write_text('{"item_id": "NEW1", "title": "Aurora Gel"}\n')
    pytest.importorskip("optuna")
    writing = [
        ["run", recipe, "--run", run, "--set", "train.epochs=1"], *([stage, recipe, "--run", run] for stage in STAGES),
        ["search", recipe, "--run", run], ["demo", "--run", run], ["report", run], ["vectors", "report", run],
        ["items", "add", run, tmp_path / "new.jsonl", "--out", run],
    ]  # fmt: skip
    for words in writing:
        assert main(list(map(str, words))) == 1
        shown = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"is being written by `python` (process {holder.pid} on " in shown, words
    assert (run / "config.json").read_bytes() == before
    reading = [["recommend", "--run", run, "nothing"], ["report", run, "--out", tmp_path / "report"]]
    for words in reading:
        assert main(list(map(str, words))) == 0, words
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert main(["run", str(recipe), "--run", str(run)]) == 0
    assert capsys.readouterr().err.count("nothing changed, skipped") == len(STAGES)


@pytest.mark.parametrize(
    "file", ["train/model.safetensors", "prepare/train", "embed/vectors", "baselines/sasrec/model.json"]
)
def test_the_command_that_an_error_names_works_as_printed(file, run, capsys, tmp_path):
    path = run / file
    path = next(path.glob("*.parquet")) if path.is_dir() else path
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    for stage in ("train", "evaluate"):  # results that have to be made from what was damaged
        shutil.rmtree(run / stage) if not file.startswith((stage, "baselines")) else None
    reader = ["evaluate", str(run / "config.json"), "--run", str(run)]
    if not file.startswith(("train", "baselines")):
        reader[0] = "train"
    shutil.rmtree(run / "evaluate", ignore_errors=True)
    assert main(reader) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was changed after it was written" in line
    advised = shlex.split(line.split("`")[1])
    assert advised[0] == "llmcfsr" and main(advised[1:]) == 0
    assert main(reader) == 0
    for stage in ("prepare", "embed", "train"):
        if (run / stage).is_dir():
            Manifest.load(run / stage).verify(run / stage)


def test_what_is_not_ours_stays(recipe, tmp_path, capsys):
    run = tmp_path / "mine"
    for name in ("ingest/notes.txt", "config.json", "search/trial-0/x", "report/report.html"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}" if name == "config.json" else "mine")
    assert main(["ingest", str(recipe), "--run", str(run)]) == 1
    assert "config.json was not written by this project" in capsys.readouterr().err
    (run / "config.json").unlink()
    for words in (["ingest"], ["ingest", "--force"], ["run"]):
        assert main([words[0], str(recipe), "--run", str(run), *words[1:]]) == 1
        assert "holds files but no manifest.json of this project" in capsys.readouterr().err
    assert (run / "ingest" / "notes.txt").read_text() == "mine"


def test_results_of_others_are_not_overwritten(run, recipe, tmp_path, capsys):
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    for name in ("report/report.html", "vectors-report/report.json", "search/trial-0/x"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text("mine")
    for words in (["report", run], ["vectors", "report", run], ["search", recipe, "--run", run, "--trials", 1]):
        assert main(list(map(str, words))) == 1, words
        assert "is not known to be of this project, so it is not replaced" in capsys.readouterr().err
    for name in ("report/report.html", "vectors-report/report.json", "search/trial-0/x"):
        assert (run / name).read_text() == "mine"
    for _ in range(2):
        assert main(["report", str(run), "--out", str(tmp_path / "page"), "--users", "1"]) == 0


def test_a_search_goes_on_after_a_kill_in_its_journal(run, recipe, capsys):
    pytest.importorskip("optuna")
    (run / "space.yaml").write_text("model.dropout: [0.5]\n")
    words = ["search", str(recipe), "--run", str(run), "--model", "sasrec", "--set", "train.epochs=1"]
    words += ["--space", str(run / "space.yaml"), "--trials"]
    assert main([*words, "1"]) == 0
    out = run / "search"
    with open(out / "journal.log", "ab") as stream:
        stream.write(b'{"op_code":4,"worker_id":"half')
    (out / "journal.log.lock").symlink_to(out / "journal.log")
    (out / "trial-1").mkdir()
    start = time.perf_counter()
    assert main([*words, "2"]) == 0
    assert time.perf_counter() - start < 25  # Optuna would wait for the lock of the killed one
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["trials"] == 2
    assert not list(out.glob("trial-*")) and not (out / "journal.log.lock").exists()


def test_adding_items_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch, capsys):
    from llmcfsr_merlin.serving import export_stage as export

    (tmp_path / "new.jsonl").write_text('{"item_id": "NEW1", "title": "Aurora Gel"}\n')
    words = ["items", "add", str(run), str(tmp_path / "new.jsonl"), "--out", str(tmp_path / "grown")]
    from llmcfsr_merlin.serving import new_items as items

    for module, name in ((items, "save_model"), (items, "seal"), (export, "export")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert main(words) == 1
        assert "the disk is full" in capsys.readouterr().err
    assert main(words) == 0
    assert main(["recommend", "--run", str(tmp_path / "grown"), "NEW1"]) == 0


LIMITS = {
    "ingest": 8 << 10, "prepare": 8 << 10, "embed": 16 << 10, "train": 64 << 10, "evaluate": 6 << 10,
    "export": 64 << 10,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_limit_of_file_sizes_in_every_stage(stage, recipe, run):
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run / later)
    if stage == "train":
        shutil.rmtree(run / "baselines")
    words = (stage, recipe, "--run", run)
    line = one_line(llmcfsr(*words, limits=[(resource.RLIMIT_FSIZE, LIMITS[stage])]))
    assert "a file exceeded the file size limit" in line
    done = llmcfsr(*words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_in_every_stage(stage, recipe, made, tmp_path):
    """A small tmpfs that grows page by page until the stage is through: one line each time, and it goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=False).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        run = disk / "run"
        shutil.copytree(made, run, ignore=lambda folder, names: set(STAGES[STAGES.index(stage) :]) & set(names))
        if stage == "train":
            shutil.rmtree(run / "baselines")
        used = sum(path.stat().st_blocks * 512 for path in run.rglob("*"))
        lines, room = [], 8 << 10
        while True:
            subprocess.run(["mount", "-o", f"remount,size={used + room}", disk], check=True)
            done = llmcfsr(stage, recipe, "--run", run)
            if done.returncode == 0:
                break
            lines.append(one_line(done))
            room *= 4 if stage == "train" else 2
        assert lines and all("the disk is full" in line for line in lines), lines
        Manifest.load(run / stage).verify(run / stage)
        print(stage, len(lines), lines)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_too_few_descriptors_and_too_little_memory(recipe, tmp_path):
    line = one_line(llmcfsr("ingest", recipe, "--run", tmp_path / "a", limits=[(resource.RLIMIT_NOFILE, 40)]))
    assert "too many open files" in line and "ulimit -n" in line
    assert llmcfsr("ingest", recipe, "--run", tmp_path / "a").returncode == 0
