"""The doctor names the pin that does not fit and the command that fixes it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmcfsr_merlin.runtime.doctor import Check, __main__, doctor, report, triton_server
from llmcfsr_merlin.runtime.doctor.check import NO_ANSWER, run_python
from llmcfsr_merlin.runtime.doctor.python_packages import check_python
from llmcfsr_merlin.runtime.supported import MERLIN, fits, supported

OLD, NEW = (3, 11, 2), (3, 12, 3)
OTHERS = {"packaging": "26.3", "pip": "24.0", "tritonclient": "2.66.0"}
GOOD = {python: {package.name: package.pin for package in supported(python)} | OTHERS for python in (OLD, NEW)}
CPU = json.dumps(["2.13.0+cpu", None, [], []])


def run(versions=None, torch=CPU, imports=(0, "works"), python=OLD):
    """The checks by name, on a machine with these versions, this torch and these imports."""

    def execute(code):
        return (0, torch) if "get_arch_list" in code else imports

    return {check.name: check for check in doctor((GOOD[python] | (versions or {})).get, execute, python)}


def gpu(name, major, minor, architectures, python=OLD):
    return run(torch=json.dumps(["2.1", "12.1", [[name, major, minor]], architectures]), python=python)["GPU"]


@pytest.mark.parametrize("python", [OLD, NEW])
def test_supported_versions_are_fine(python):
    checks = run(python=python)
    assert {checks[package.name].status for package in supported(python)} == {"ok"}


@pytest.mark.parametrize(
    ("python", "package", "version", "fix"),
    [
        (OLD, "dask", "2026.3.0", "'dask==2023.9.2'"),
        (OLD, "setuptools", "81.0.0", "'setuptools==80.10.2'"),
        (OLD, "pandas", "2.2.3", "'pandas==1.5.3'"),
        (OLD, "transformers", "4.46.0", "'transformers==4.30.2'"),
        (OLD, "dask", None, "'dask==2023.9.2'"),
        (OLD, "numpy", "2.0.0rc1", "'numpy==1.26.4'"),
        (NEW, "dask", "2026.3.0", "'dask==2024.11.2'"),
        (NEW, "transformers", "4.30.2", "'transformers==5.17.0'"),
        (NEW, "nvtabular", "23.2", "--no-deps 'nvtabular==23.8.0'"),
        (NEW, "numpy", "1.26.4", "'numpy==2.5.2'"),
    ],
)
def test_a_wrong_version_is_an_error_with_its_fix(python, package, version, fix):
    checks = doctor((GOOD[python] | {package: version}).get, lambda code: (0, CPU), python)
    wrong = [check for check in checks if check.name == package and check.status == "error"]
    assert wrong
    assert any(check.action == f"{sys.executable} -m pip install {fix}" for check in wrong)
    assert all((version or "not installed") in check.found for check in wrong)


def test_dask_and_distributed_must_be_of_one_release():
    checks = doctor((GOOD[OLD] | {"distributed": "2023.9.1"}).get, lambda code: (0, CPU), OLD)
    assert [check.action for check in checks if check.status == "error" and "must be equal" in check.found] == [
        f"{sys.executable} -m pip install 'distributed==2023.9.2'"
    ]


def test_the_versions_of_the_merlin_container_are_supported():
    container = {
        "pandas": "1.5.2",
        "numpy": "1.22.4",
        "dask": "2023.1.1",
        "distributed": "2023.1.1",
        "transformers": "4.27.1",
        "torch": "2.1.0a0+4136153",
        "dask-cuda": "23.4.0",
    }
    checks = run(container)
    assert {checks[name].status for name in container} == {"ok"}


def test_builds_of_a_container_count_as_what_they_became():
    assert fits("2.1.0a0+4136153", ">=2.1,<3") and not fits("2.0.0rc1", "<2")
    assert fits("2023.10.0", ">=2023.9") and not fits("2023.10.0", "<2023.10")


def test_bare_python_is_told_to_install():
    checks = doctor({}.get, lambda code: (1, "not reached"), NEW)
    assert [(check.name, check.status) for check in checks] == [("python", "ok"), ("packaging", "error")]
    assert "pip install packaging" in checks[-1].action
    done = subprocess.run(
        [sys.executable, "-S", "-m", "llmcfsr_merlin.runtime.doctor"], capture_output=True, text=True,
        cwd=Path(__file__).parents[3], env={"PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "error packaging: not installed" in done.stdout, done.stderr


def test_pip_that_refuses_merlin_is_named():
    assert "pip<26.3" in run({"pip": "26.3"})["pip"].action
    assert run({"pip": "26.2"})["pip"].status == "ok"


def test_a_failing_import_is_reported_with_its_message():
    checks = run(imports=(1, "ImportError: Dask requires version '2.0.0' or newer of pandas"))
    assert checks["import nvtabular"].status == "error"
    assert "newer of pandas" in checks["import nvtabular"].found


def test_a_busy_machine_is_no_fault_of_the_versions():
    assert run(imports=(1, NO_ANSWER))["import nvtabular"].status == "warn"


def test_long_paths_are_shown_whole():
    path = "/very/long" * 20
    shown = report([Check("tritonserver", "ok", path)])
    assert "…" not in shown and path in re.sub(r"[\s│]", "", shown)


@pytest.mark.parametrize("python", [OLD, NEW])
def test_merlin_that_is_missing_is_a_note(python):
    none = dict.fromkeys(MERLIN) | {"setuptools": "82.0"}  # its bound is NVTabular's
    checks = run(none, imports=(1, "No module named 'nvtabular'"), python=python)
    note = checks["Merlin"]
    assert note.status == "note" and "no NVTabular workflow" in note.found and "transformers' own Trainer" in note.found
    assert ("--no-deps --no-build-isolation" in note.action) == (python == NEW)
    wanted = {package.name for package in supported(python)} & set(MERLIN)
    assert set(re.findall(r"'([\w-]+)==", note.action)) == wanted
    assert not checks.keys() & {*MERLIN, "setuptools", "import nvtabular", "import transformers4rec.torch"}


def test_a_part_of_merlin_is_tried():
    checks = run({"merlin-core": None}, imports=(1, "No module named 'merlin.core'"))
    assert checks["Merlin"].found == "not installed: merlin-core"
    assert checks["import nvtabular"].status == "error"
    assert "Merlin" not in run()


def test_a_crash_on_import_is_survived():
    code, line = run_python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert code != 0
    assert line


def test_gpus():
    assert gpu("H200", 9, 0, ["sm_80", "sm_90"]).status == "ok"
    assert gpu("A10", 8, 6, ["sm_80"]).status == "ok"
    old_torch = gpu("B200", 10, 0, ["sm_80", "sm_90"])
    assert old_torch.status == "warn"
    assert "Blackwell" in old_torch.action
    assert gpu("B200", 10, 0, ["sm_90", "sm_100"]).status == "note"
    assert gpu("B200", 10, 0, ["sm_90", "compute_90"]).status == "note"
    assert gpu("B200", 10, 0, ["sm_90", "sm_100"], NEW).status == "ok"
    assert gpu("V100", 7, 0, ["sm_80", "compute_80"]).status == "warn"


def test_cves_are_named_for_the_versions_that_have_them():
    checks = doctor(GOOD[OLD].get, lambda code: (0, CPU), OLD)
    found = " ".join(check.found for check in checks if check.name == "security")
    assert "CVE-2025-23298" in found
    assert "CVE-2025-33214" in found


@pytest.mark.parametrize(
    ("version", "holes"),
    [("2.51.0", 3), ("2.59.1", 2), ("2.62.0", 1), ("2.66.0", 1), ("2.67.0", 0), ("2.71.0", 0), (None, 3)],
)
def test_holes_of_the_server_are_named(version, holes):
    checks = triton_server._triton_cves(version)
    assert len(checks) == holes and all("CVE-20" in check.found and "container 2" in check.action for check in checks)


def test_the_servers_version_is_read_in_a_container(tmp_path):
    (tmp_path / "bin").mkdir()
    assert triton_server._triton_version(tmp_path / "bin" / "tritonserver") is None
    (tmp_path / "TRITON_VERSION").write_text("2.59.1\n")
    assert triton_server._triton_version(tmp_path / "bin" / "tritonserver") == "2.59.1"


def test_missing_libpython_names_the_package(monkeypatch, tmp_path):
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = tmp_path / "python_backend_stubs" / version / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    monkeypatch.setattr(triton_server, "shared_python", lambda: None)
    check = triton_server._stub(tmp_path)
    assert (check.status, check.action) == ("error", f"apt-get install libpython{version}")


def test_other_pythons_are_refused():
    for python, status in (((3, 9, 9), "error"), ((3, 10, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "error")):
        assert check_python(python).status == status


def test_report_and_exit_code(monkeypatch, capsys):
    bad = [Check("a", "ok", "1.0"), Check("b", "error", "2.0 [old]", "pip install 'b[x]==3'")]
    assert "2.0 [old]" in report(bad) and "'b[x]==3'" in report(bad)
    for checks, code in ((bad, 1), (bad[:1], 0)):
        monkeypatch.setattr(__main__, "doctor", lambda checks=checks: checks)
        assert __main__.main() == code
    assert "1 problem(s)" in capsys.readouterr().out


def test_report_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "error b: 2.0  fix" in report([Check("b", "error", "2.0", "fix")])


@pytest.mark.parametrize(("python", "name"), [(OLD, "constraints.txt"), (NEW, "constraints-current.txt")])
def test_pins_are_those_of_the_constraints(python, name):
    text = (Path(__file__).resolve().parents[3] / name).read_text()
    for package in supported(python):
        if package.name != "setuptools":
            assert re.search(rf"^{package.name}=={re.escape(package.pin)}$", text, re.M | re.I), package
