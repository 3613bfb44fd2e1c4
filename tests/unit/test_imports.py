"""The package and its command line start without the heavy and the optional packages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.application.use_cases import SUCCESS, lint_imports
from importlinter.cli import lint_imports_command  # noqa: F401 - importing it configures the library

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "cudf",
    "dask_cuda",
    "tritonclient",
    "nvtabular",
    "merlin",
    "transformers",
    "transformers4rec",
    "dask",
    "matplotlib",
    "pytriton",
    "pandas",
)
BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BLOCK + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_block_blocks():
    assert "(blocked)" in run_blocked("import torch").stderr


@pytest.mark.parametrize(
    "module", ["", ".config.load", ".runtime.stage", ".runtime.lock", ".runtime.doctor", ".cli.main"]
)
def test_light_modules_import_without_heavy_packages(module):
    done = run_blocked(f"import llmcfsr_merlin{module}")
    assert done.returncode == 0, done.stderr


def test_help_needs_no_heavy_package():
    done = run_blocked("sys.argv = ['llmcfsr', '--help']\nfrom llmcfsr_merlin.cli.main import main\nsys.exit(main())")
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_imports_point_one_way():
    """The layers of pyproject.toml: a folder imports only from those below it."""
    report = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None, is_debug_mode=False)
    assert report == SUCCESS, "run `lint-imports`: it names the import"


def test_no_file_name_stands_twice():
    names = [path.name for path in (ROOT / "llmcfsr_merlin").rglob("*.py") if path.name != "__init__.py"]
    assert {name: names.count(name) for name in names if names.count(name) > 1} == {}


def test_doctor_reports_what_is_missing_instead_of_failing():
    """Even looking a package up may raise, as the block does."""
    done = run_blocked("from llmcfsr_merlin.runtime.doctor.__main__ import main\nsys.exit(main())")
    assert "text encoder" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_said_unless_the_caller_asks_for_it(tmp_path):
    code = (
        "import logging, sys\n"
        "from llmcfsr_merlin import Config, run_stages\n"
        "if sys.argv[2:]: logging.basicConfig(level='INFO')\n"
        "config = Config.load('demo', ['data.synthetic_users=60', 'data.synthetic_items=40'])\n"
        "run_stages(config, sys.argv[1], ['ingest'])"
    )
    command = [sys.executable, "-c", code]
    silent = subprocess.run([*command, tmp_path / "a"], capture_output=True, text=True, timeout=120, check=True)
    assert silent.stdout + silent.stderr == ""
    asked = subprocess.run([*command, tmp_path / "b", "x"], capture_output=True, text=True, timeout=120, check=True)
    assert "INFO:llmcfsr_merlin.pipeline:ingest: done in" in asked.stderr and "rows read" in asked.stderr
    assert asked.stdout == ""


def test_only_the_command_line_prints():
    """And what is a command of its own: doctor (also in its own process), serve in the foreground, a health check."""
    own = {"console.py", "__main__.py", "hardware.py", "supervise.py", "probe.py"}
    modules = [path for path in (ROOT / "llmcfsr_merlin").rglob("*.py") if path.parent.name != "cli"]
    calls = {path.name for path in modules for line in path.read_text().splitlines() if re.match(r"\s*print\(", line)}
    assert calls <= own
