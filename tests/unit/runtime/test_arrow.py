"""An old pyarrow is not used without its repair."""

import importlib
import sys
from importlib import metadata
from types import ModuleType

import pytest

from llmcfsr_merlin.runtime.arrow import check_arrow
from llmcfsr_merlin.runtime.doctor.python_packages import check_pyarrow
from llmcfsr_merlin.runtime.errors import MissingDependency


@pytest.mark.parametrize("version", ["8.0.0", "11.0.0", "14.0.0"])
def test_refused_without_the_repair(version, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    monkeypatch.setitem(sys.modules, "pyarrow_hotfix", None)
    with pytest.raises(MissingDependency, match=f"pyarrow {version}.*CVE-2023-47248.*pip install pyarrow-hotfix"):
        check_arrow()
    with pytest.raises(MissingDependency, match="pyarrow-hotfix"):  # whoever reads Parquet imports it
        importlib.reload(importlib.import_module("llmcfsr_merlin.dataset"))


def test_repaired_by_the_hotfix(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "11.0.0")
    monkeypatch.setitem(sys.modules, "pyarrow_hotfix", ModuleType("pyarrow_hotfix"))
    check_arrow()


@pytest.mark.parametrize("version", ["14.0.1", "14.0.2", "15.0.0"])
def test_a_newer_one_needs_nothing(version, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    monkeypatch.setitem(sys.modules, "pyarrow_hotfix", None)
    check_arrow()


@pytest.mark.parametrize(("hotfix", "status"), [(None, "error"), ("0.7", "note")])
def test_the_doctor_says_so(hotfix, status):
    (check,) = check_pyarrow({"pyarrow": "11.0.0", "pyarrow-hotfix": hotfix}.get)
    assert check.status == status and "CVE-2023-47248" in check.found
    assert ("pyarrow-hotfix" in check.action) == (hotfix is None)
    assert check_pyarrow({"pyarrow": "14.0.2"}.get) == []
