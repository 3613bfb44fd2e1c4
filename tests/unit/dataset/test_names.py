"""The reserved ids of dataset/names.py are those of a fitted NVTabular workflow."""

import tests.needs_merlin  # noqa: F401

# isort: split
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.io import Dataset

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, NULL, OOV, PAD
from llmcfsr_merlin.dataset.prepare.nvtabular_adapter import categorify


def test_reserved_ids(tmp_path):
    log = pd.DataFrame({ITEM: ["b", "b", "b", "a", "a", "c"]})
    workflow = nvt.Workflow([ITEM] >> nvt.ops.Categorify(out_path=str(tmp_path)))
    workflow.fit(Dataset(log, cpu=True))

    def codes(*ids):
        return workflow.transform(Dataset(pd.DataFrame({ITEM: [*ids]}), cpu=True)).compute()[ITEM].tolist()

    assert codes("b", "a", "c", "never seen") == [FIRST_ITEM, FIRST_ITEM + 1, FIRST_ITEM + 2, OOV]
    assert PAD == 0
    if pd.__version__ < "3":
        assert codes("b", None) == [FIRST_ITEM, NULL]
    else:  # it writes into what pandas 3 has made read-only; nothing of ours encodes by it
        with pytest.raises(RuntimeError, match="Failed to categorical encode"):
            codes("b", None)


def test_categorify_numbers_by_frequency_and_saves_a_movable_workflow(tmp_path, monkeypatch):
    ids = pd.Series([f"item {x}" for x in (5, 1, 9)])
    assert categorify(ids, tmp_path / "a").tolist() == [3, 4, 5]
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir("/")
    loaded = nvt.Workflow.load(str(tmp_path / "b"))
    asked = pd.DataFrame({ITEM: ["item 9", "new", "item 5"]})
    assert loaded.transform(Dataset(asked, cpu=True)).compute()[ITEM].tolist() == [5, OOV, 3]
