"""The GPU kit (benchmarks/gpu) at small sizes without a GPU, so that it runs on the day that there is one."""

import json
import struct
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks" / "gpu"
if not KIT.is_dir():
    pytest.skip("benchmarks/ stands beside the package in a checkout only", allow_module_level=True)

from benchmarks.gpu import build, check, prune, report  # noqa: E402
from benchmarks.gpu.common import histories  # noqa: E402
from benchmarks.gpu.record import Record, Skip  # noqa: E402
from benchmarks.gpu.steps import parity  # noqa: E402


def run_check(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, KIT / "check.py", out, "--small", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Each run of the script that `prepare` calls is a process that imports Merlin.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "prepare" else []) for name in check.STEPS]
)
def test_step_at_small_size(name, tmp_path):
    record = Record(tmp_path / f"{name}.json")
    try:
        import_module(f"benchmarks.gpu.steps.{name}").run(record, small=True)
    except Skip as reason:
        pytest.skip(str(reason))
    written = json.loads(record.path.read_text())
    assert written["status"] == "running" and written["found"], written
    assert not [part for part in written["found"].values() if isinstance(part, dict) and "error" in part]
    assert report.report({"steps": {name: written}, "small": True}).endswith("its figures mean nothing")


def test_unnormalised_cross_attention_keeps_the_limit_in_half_precision():
    codes = torch.from_numpy(histories(64, parity.ITEMS))
    assert parity.network("llm_esr", codes)["bf16_error"] < report.BF16


def test_each_step_is_a_process_and_all_is_merged(tmp_path):
    out, earlier = tmp_path / "out", tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "machine.json").write_text('{"status": "done", "seconds": 2, "found": {"facts": {"device": "H1"}}}')
    done = run_check(out, "--step", "cudf", "--earlier", str(earlier))
    assert done.returncode == 0, done.stderr
    merged = json.loads((out / check.MERGED).read_text())
    assert set(merged["steps"]) == {"machine", "cudf"} and merged["machine"]["device"] == "H1"
    assert merged["steps"]["cudf"]["status"] == "done" and (earlier / "cudf.json").is_file()
    assert len(list(out.iterdir())) == 2
    assert "a dry run" in done.stdout.splitlines()[-1]


def test_a_cut_step_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ROOT", tmp_path)  # where the child runs
    child = tmp_path / "child.py"
    child.write_text(
        "import json, sys, time; from pathlib import Path\n"
        'Path(sys.argv[1], "machine.json").write_text(\'{"status": "running", "found": {"a": 1}}\'); time.sleep(60)'
    )
    monkeypatch.setattr(check, "__file__", str(child))
    check._run_limited("machine", tmp_path, True, 5)
    written = json.loads((tmp_path / "machine.json").read_text())
    assert written["status"] == "cut" and written["found"] == {"a": 1} and written["seconds"] < 30
    check._run_limited("machine", tmp_path, True, 0)
    assert json.loads((tmp_path / "machine.json").read_text())["why"] == "no time was left"


def test_figures_of_prepare():
    from benchmarks.gpu.steps.prepare import summary

    gpu = {"second": {"rows_per_second": 300}, "rows_per_second": 100}
    entry = {"rows": 10, "gpu": gpu, "cpu": {"rows_per_second": 30}, "cpu-2": {"rows_per_second": 20}}
    found = summary(entry | {"equal_cpu": "bytes", "equal_cpu-2": False}, 20)
    assert (found["rows_per_second"], found["times_two_cores"], found["times_all_cores"]) == (300, 15, 10)
    assert found["equal"] is False and "error" not in found
    found = summary({"rows": 100, "gpu": gpu, "cpu": {"failed": "stopped after 9 s"}}, 20)
    assert found["times_two_cores"] == 15 and "equal" not in found and found["error"] == "stopped after 9 s"
    assert summary({"rows": 100}, None)["rows_per_second"] is None


def test_figures_of_training():
    from benchmarks.gpu.steps.training import figures

    speeds = {"float32, trainer": 90, "bfloat16, trainer": 120, "float32, plain loop": 100, "bfloat16, plain loop": 100}
    found = {"speed": {f"sasrec, {label}": {"sequences_per_second": value} for label, value in speeds.items()}}
    made = figures(found, {"sasrec": 10})
    assert made == {
        "sasrec speed": {
            "sequences_per_second": 120, "precision": "bfloat16", "share_of_plain_loop": 0.9, "times_two_cores": 12.0,
        }
    }  # fmt: skip
    curves = {"device, float32": {"ndcg@10": [0.1, 0.22]}, "cpu": {"ndcg@10": [0.1, 0.2]}}
    assert figures({"curve": curves}, {})["same as CPU"]["relative_difference"] == pytest.approx(0.1)


def test_no_more_files_than_come_back():
    """At most eight files come back from the machine for one command."""
    assert len(check.STEPS) + 1 <= 8


def test_a_failed_part_is_noted_and_the_step_goes_on(tmp_path):
    record = Record(tmp_path / "step.json")
    record.part("bad", lambda: {"x": 1 // 0})
    record.part("good", lambda: {"x": 1})
    written = json.loads(record.path.read_text())
    assert written["status"] == "failed" and "ZeroDivisionError" in written["found"]["bad"]["error"]
    assert written["found"]["good"]["x"] == 1


def test_report_says_what_was_reached(tmp_path):
    found = {
        "1000000 items": {"exact": {"p50_ms": 2.5, "p99_ms": 3.5, "users_per_second": 600}},
        "100000 items": {"exact": {"p50_ms": 2.0}},
    }
    steps = {
        "serving": {"status": "done", "seconds": 3, "found": found},
        "prepare": {"status": "cut", "seconds": 9, "found": {"100000000 rows": {"times_two_cores": 12.0}}},
    }
    rows = {row.figure: row for row in report.rows({"steps": steps})}
    assert rows["serve 1,000,000 items: p50, ms"].reached is True
    assert rows["prepare 100,000,000 rows: times 2 CPU cores"].reached is False
    assert rows["encode, LLaMA 7B: share of the data sheet's peak"].reached is None
    assert "prepare: cut after 9 s" in report.report({"steps": steps})
    run = {"date": "2026-11-26", "machine": {"device": "NVIDIA H100 80GB HBM3"}}
    assert report.kept_as(run, tmp_path).name == "2026-11-26-nvidia-h100.json"
    report.kept_as(run, tmp_path).touch()
    assert report.kept_as(run, tmp_path).name == "2026-11-26-nvidia-h100-2.json"


def test_a_folder_over_its_limit_is_refused_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "libcudf.so.xz").write_bytes(bytes(3000))
    monkeypatch.setattr(build, "MIB", 1000)
    monkeypatch.setattr(build, "FOLDER_LIMIT", 3000)
    monkeypatch.setattr(build, "COPY_LIMIT", 4000)
    build.check_size(tmp_path, 1000)
    with pytest.raises(SystemExit, match=r"at most 4 MiB with the repository, found 3.0 \(libcudf.so.xz 3.0\) and 1.5"):
        build.check_size(tmp_path, 1500)
    (tmp_path / "more").write_bytes(bytes(1))
    with pytest.raises(SystemExit, match=r"expected at most 3 MiB, found 3.0"):
        build.check_size(tmp_path, 0)


def test_what_is_cached_is_made_once_and_whole(tmp_path):
    source, made = tmp_path / "requirements.txt", []
    source.write_text("a==1")

    def make(into):
        into.mkdir()
        made.append(into)

    first = build.cached(tmp_path / "cache", "wheels", [source], make)
    assert build.cached(tmp_path / "cache", "wheels", [source], make) == first and len(made) == 1
    source.write_text("a==2")
    with pytest.raises(ZeroDivisionError):
        build.cached(tmp_path / "cache", "wheels", [source], lambda into: 1 // 0)
    second = build.cached(tmp_path / "cache", "wheels", [source], make)
    assert second != first and [path.name for path in (tmp_path / "cache").iterdir()] == [second.name]


def entry(kind: int, arch: int, payload: bytes) -> bytes:
    return struct.pack("<HHIQ", kind, 0, 64, len(payload)) + bytes(12) + struct.pack("<I", arch) + bytes(32) + payload


def library(*containers: list[bytes]) -> bytes:
    """A 64-bit ELF whose section .nv_fatbin holds these containers."""
    section = b""
    for entries in containers:
        body = b"".join(entries)
        section += struct.pack("<IHHQ", prune.MAGIC, 1, 16, len(body)) + body
        section += bytes(-len(section) % 8 + 8)
    names = b"\0.shstrtab\0.nv_fatbin\0"
    start = 64
    table = start + len(section) + len(names)
    header = b"\x7fELF\x02".ljust(0x28, b"\0") + struct.pack("<Q", table)
    header = header.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 3, 1)

    def row(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")

    rows = row(0, 0, 0) + row(1, start + len(section), len(names)) + row(11, start, len(section))
    return header.ljust(64, b"\0") + section + names + rows


def test_pruned_library_keeps_one_architecture(tmp_path):
    three = [entry(2, 80, b"a" * 40), entry(2, 90, b"b" * 24), entry(1, 90, b"ptx " * 2)]
    other = [entry(2, 75, b"c" * 16)]
    source, target = tmp_path / "lib.so", tmp_path / "pruned.so"
    source.write_bytes(library(three, other))
    found = prune.prune(source, target, 90)
    assert found == {"containers": 2, "left_whole": 1, "zeroed_bytes": 48}
    kept = target.read_bytes()
    assert len(kept) == source.stat().st_size
    assert b"b" * 24 in kept and b"c" * 16 in kept and b"aa" not in kept and b"ptx" not in kept
    assert prune.prune(source, target, 86)["zeroed_bytes"] == 32  # sm_80's code runs on 8.6
    assert b"a" * 40 in target.read_bytes()


def test_what_is_no_cuda_library_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"no library")
    with pytest.raises(ValueError, match="64-bit ELF"):
        prune.prune(tmp_path / "text", tmp_path / "out", 90)
