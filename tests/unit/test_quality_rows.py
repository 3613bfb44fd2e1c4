"""Rows of benchmarks/quality.py name the commit whose code measured them."""

import importlib.util
import shutil
import subprocess

import pytest

from llmcfsr_merlin.runtime.layout import resource

SCRIPT = resource("pipelines").parent / "benchmarks" / "quality_rows.py"


def test_new_results_do_not_make_the_code_another_one(tmp_path):
    if not SCRIPT.is_file():
        pytest.skip("benchmarks/ stands beside the package in a checkout only")
    copy, results = tmp_path / "benchmarks" / SCRIPT.name, tmp_path / "docs" / "results" / "README.md"
    for path in (copy, results):
        path.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    results.write_text("old")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", tmp_path]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    spec = importlib.util.spec_from_file_location("quality_rows_copy", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert module.made_by()["commit"] == head
    results.write_text("new")
    assert module.made_by()["commit"] == head
    copy.write_text(copy.read_text() + "\n")
    assert module.made_by()["commit"] == f"{head}*"
