"""Compiled loops: where nothing can be written, they are compiled without being kept."""

import numpy as np
import pytest
from numba.core import caching

from llmcfsr_merlin.runtime.machine_code import loop


@pytest.mark.parametrize("writable", [True, False])
def test_a_loop_runs_where_nothing_can_be_kept(writable, monkeypatch, tmp_path):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    if not writable:
        monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])

    @loop("float64(float64[::1])")
    def total(values):
        found = 0.0
        for value in values:
            found += value
        return found

    assert total(np.arange(5.0)) == 10
    assert bool(list(tmp_path.rglob("*.nbi"))) == writable
