"""Stages: skipped only while their files are theirs, resumed whatever stopped them; others' files are left alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.runtime import manifest as manifests
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import CHECKSUMS
from llmcfsr_merlin.runtime.layout import FORMATS
from llmcfsr_merlin.runtime.lock import LOCK
from llmcfsr_merlin.runtime.stage import MANIFEST, Manifest, run_stage, seal


def write(out: Path) -> dict:
    (out / "parts").mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": [1, 2, 3]}), out / "parts" / "part-0.parquet")
    (out / "words.txt").write_text("ten bytes.")
    return {"rows": 3}


def stage(run: Path, work=write, **options) -> tuple[Manifest, bool]:
    return run_stage(run, "ingest", {"a": 1}, options.pop("inputs", ()), work, **options)


def read(run: Path) -> tuple[Manifest, bool]:
    return run_stage(run, "prepare", {}, ["ingest"], lambda out: (out / "x").write_text("y") and {})


def flip(path: Path) -> None:
    """Change one byte and keep size and times of change of content."""
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "flipped byte": lambda folder: flip(folder / "words.txt"),
    "flipped byte of a part": lambda folder: flip(folder / "parts" / "part-0.parquet"),
    "missing file": lambda folder: (folder / "words.txt").unlink(),
    "missing folder": lambda folder: shutil.rmtree(folder / "parts"),
    "cut file": lambda folder: os.truncate(folder / "words.txt", 3),
    "empty file": lambda folder: os.truncate(folder / "words.txt", 0),
    "part of another run": lambda folder: shutil.copy(folder / "parts/part-0.parquet", folder / "parts/part-1.parquet"),
    "flipped manifest": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace("{", "[", 1)
    ),
    "cut manifest": lambda folder: (folder / MANIFEST).write_text("{"),
    "missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "empty manifest": lambda folder: os.truncate(folder / MANIFEST, 0),
    "manifest without files": lambda folder: (folder / MANIFEST).write_text(
        json.dumps(json.loads((folder / MANIFEST).read_text()) | {"files": {}})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_stage_runs_again_and_is_refused_as_input(damage, tmp_path, capsys):
    stage(tmp_path)
    assert stage(tmp_path)[1] is False
    damage(tmp_path / "ingest")
    with pytest.raises(InputError) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value) and not (tmp_path / "prepare").exists()
    assert stage(tmp_path)[1] is True
    assert capsys.readouterr().err.count("so the stage runs again") == 1
    assert stage(tmp_path)[1] is False
    assert read(tmp_path)[1] is True


def test_the_advice_is_a_command_that_names_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("it's $HOME")
    stage(run)
    (run / "config.json").write_text("{}")
    flip(run / "ingest" / "words.txt")
    with pytest.raises(InputError, match="run `llmcfsr ingest") as raised:
        read(run)
    command = str(raised.value).split("`")[1]
    assert sys.executable and os.sep not in command.split()[0]
    import shlex

    assert shlex.split(command) == ["llmcfsr", "ingest", "it's $HOME/config.json", "--run", "it's $HOME"]


def test_another_version_of_the_package_goes_on_with_a_run(tmp_path, monkeypatch):
    manifest, _ = stage(tmp_path)
    of_0_1_0 = {"stage": "ingest", "settings": {"a": 1}, "inputs": {}, "version": "0.1.0"}
    assert manifest.key == manifests.hash_json(of_0_1_0), "runs of version 0.1.0 stay"
    monkeypatch.setattr(manifests, "__version__", "9.9.9")
    path = tmp_path / "ingest" / MANIFEST
    tree = json.loads(path.read_text())
    assert tree.pop("format") == 1
    path.write_text(json.dumps(tree))  # as version 0.1.0 wrote it
    assert stage(tmp_path)[1] is False and read(tmp_path)[1] is True


def test_a_stage_whose_format_changed_runs_again_and_is_no_input_before(tmp_path, monkeypatch, capsys):
    stage(tmp_path)
    read(tmp_path)
    monkeypatch.setitem(FORMATS, "ingest", 2)
    with pytest.raises(InputError, match=r"ingest was written by version 0\.1\.0 in format 1, .* reads 2: .*ingest"):
        read(tmp_path)
    assert stage(tmp_path)[1] is True
    assert capsys.readouterr().err.count("by another version of this project") == 1
    assert stage(tmp_path)[1] is False
    assert read(tmp_path)[1] is True, "its input is another one"


def test_an_unchanged_file_is_hashed_once(tmp_path, monkeypatch):
    stage(tmp_path)
    monkeypatch.setattr(manifests, "sha256_file", lambda path: pytest.fail(f"{path} was hashed"))
    monkeypatch.setattr("llmcfsr_merlin.runtime.files.sha256_file", lambda path: pytest.fail(f"{path} was hashed"))
    assert stage(tmp_path)[1] is False


def test_a_copied_run_and_a_lost_memory_are_hashed_again(tmp_path):
    stage(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "ingest" / CHECKSUMS).write_text("[1")
    assert stage(tmp_path / "b")[1] is False


def test_nothing_is_sealed_without_files(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected files"):
        seal(tmp_path / "empty", "ingest", "key", {})
    with pytest.raises(InputError, match="expected files"):
        stage(tmp_path, work=lambda out: {})
    assert not (tmp_path / "ingest").exists()


FOREIGN = {
    "a file": {"notes.txt": "mine"},
    "a web page's manifest": {"manifest.json": '{"name": "My app", "icons": []}', "notes.txt": "mine"},
    "another tool's checksums": {"checksums.json": '{"a": "0123", "b": [1, 2]}', "notes.txt": "mine"},
    "a list as manifest": {"manifest.json": "[1, 2]"},
    "a folder of files": {"deep/er/notes.txt": "mine"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("place", ["ingest", ".ingest.partial"])
@pytest.mark.parametrize("force", [False, True])
def test_folders_of_others_are_refused_and_left_alone(files, place, force, tmp_path):
    for name, text in files.items():
        (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).write_text(text)
    with pytest.raises(InputError, match="move it away or choose another --run"):
        stage(tmp_path, force=force)
    assert {
        str(p.relative_to(tmp_path / place)): p.read_text() for p in (tmp_path / place).rglob("*") if p.is_file()
    } == files


def test_a_file_in_the_place_of_a_stage_is_left_alone(tmp_path):
    (tmp_path / "ingest").write_text("mine")
    with pytest.raises(InputError, match="found a file"):
        stage(tmp_path)
    assert (tmp_path / "ingest").read_text() == "mine"


def test_a_users_file_in_a_stage_that_is_replaced_is_kept(tmp_path, capsys):
    stage(tmp_path)
    (tmp_path / "ingest" / "parts" / "notes.txt").write_text("mine")
    stage(tmp_path, force=True)
    assert (tmp_path / "ingest.kept" / "parts" / "notes.txt").read_text() == "mine"
    assert "ingest.kept" in capsys.readouterr().err
    assert not (tmp_path / ".ingest.old").exists()
    assert stage(tmp_path)[1] is False


def test_a_linked_stage_is_replaced_and_its_target_left_alone(tmp_path):
    stage(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ingest").symlink_to(tmp_path / "a" / "ingest")
    assert stage(tmp_path / "b")[1] is False
    assert stage(tmp_path / "b", force=True)[1] is True
    assert not (tmp_path / "b" / "ingest").is_symlink()
    assert stage(tmp_path / "a")[1] is False


def test_a_manifest_cannot_make_us_remove_what_is_outside(tmp_path):
    stage(tmp_path / "run")
    (tmp_path / "precious").write_text("mine")
    path = tmp_path / "run" / "ingest" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../../precious"] = "0"
    path.write_text(json.dumps(manifest))
    stage(tmp_path / "run", force=True)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("moment", ["sealed", "between the renames", "before the old one went"])
def test_killed_while_the_result_is_put_in_place(moment, tmp_path, monkeypatch):
    stage(tmp_path)
    stage(tmp_path / "new")
    if moment == "sealed":
        (tmp_path / "new" / "ingest").rename(tmp_path / ".ingest.partial")
        shutil.rmtree(tmp_path / "ingest")
    elif moment == "between the renames":
        (tmp_path / "ingest").rename(tmp_path / ".ingest.old")
        (tmp_path / "new" / "ingest").rename(tmp_path / ".ingest.partial")
    else:
        (tmp_path / "new" / "ingest").rename(tmp_path / ".ingest.old")
    stage(tmp_path, work=lambda out: pytest.fail("nothing has to be done again"))
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("ingest", "new", LOCK)]


def test_the_old_result_comes_back_where_the_new_one_is_not_whole(tmp_path):
    stage(tmp_path)
    (tmp_path / "ingest").rename(tmp_path / ".ingest.old")
    assert stage(tmp_path)[1] is False


def test_what_a_stopped_run_left_and_cannot_be_used_is_started_again(tmp_path, capsys):
    def work(out: Path) -> dict:
        if (out / "half").exists():
            raise EOFError("Ran out of input")
        (out / "half").write_text("x")
        if not finish:
            raise KeyboardInterrupt
        return write(out)

    finish = False
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work=work, resumable=True)
    finish = True
    assert stage(tmp_path, work=work, resumable=True)[1] is True
    assert "starting over" in capsys.readouterr().err


def test_a_bug_is_not_hidden_by_starting_again(tmp_path):
    def work(out: Path) -> dict:
        (out / "half").write_text("x")
        raise KeyError("a bug")

    for _ in range(2):
        with pytest.raises(KeyError, match="a bug"):
            stage(tmp_path, work=work, resumable=True)


def test_temporary_files_of_a_killed_process_are_not_sealed(tmp_path):
    def work(out: Path) -> dict:
        (out / ".part-0.parquet.4711").write_text("half")
        if not finish:
            raise KeyboardInterrupt
        (out / ".part-0.parquet.4711").unlink()
        return write(out)

    finish = False
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work=work, resumable=True)
    stage(tmp_path, resumable=True)
    assert set(Manifest.load(tmp_path / "ingest").files) == {"parts/part-0.parquet", "words.txt"}


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [("022", 0o644, 0o755), ("027", 0o640, 0o750), ("002", 0o664, 0o775)]
)
def test_sealed_files_have_the_modes_of_the_umask(umask, file, folder, tmp_path):
    code = (
        "import os, sys, pathlib, tempfile; os.umask(int(sys.argv[2], 8))\n"
        "from llmcfsr_merlin.runtime.stage import run_stage\n"
        "def work(out):\n"
        "    pathlib.Path(tempfile.mkdtemp(dir=out), 'x').write_text('y')\n"
        "    os.close(tempfile.mkstemp(dir=out)[0]); (out / 'z').touch(); (out / 'z').chmod(0o600)\n"
        "    return {}\n"
        "run_stage(pathlib.Path(sys.argv[1]) / 'run', 'ingest', {}, [], work)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), umask], check=True)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (folder if path.is_dir() else file), path


def test_the_time_of_all_attempts_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.runtime.stage._NOTED", 0.0)

    def killed(out):
        (out / "half").write_text("x")
        time.sleep(0.5)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, work=killed, resumable=True)
    manifest, _ = stage(tmp_path, resumable=True)
    assert manifest.seconds > 0.9 and manifest.counts["attempts"] == 3
    assert ".attempts" not in manifest.files and not (tmp_path / manifest.stage / ".attempts").exists()
    assert "attempts" not in stage(tmp_path, force=True)[0].counts  # nothing was taken over


def test_an_attempt_that_was_killed_counts_up_to_its_last_note(tmp_path):
    from llmcfsr_merlin.runtime.stage import Attempts

    Attempts(2, 100.0, 77).write(tmp_path)
    assert Attempts.read(tmp_path) == Attempts(2, 100.0, 77)
    (tmp_path / ".attempts").write_text("{")
    assert Attempts.read(tmp_path) == Attempts.read(tmp_path / "nowhere") == Attempts()
