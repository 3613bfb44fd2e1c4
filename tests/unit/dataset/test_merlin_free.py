"""The adapter of an environment without Merlin, and which one is taken. With Merlin: test_nvtabular.py."""

import importlib.util
import sys

import pandas as pd
import pytest

from llmcfsr_merlin.dataset.prepare import merlin_free
from llmcfsr_merlin.dataset.prepare.adapters import adapter
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.layout import resource

# As protobuf 7 writes it for Merlin, and as this package did before it wrote one text everywhere.
WRITTEN_OUT = """feature {
  name: "item_id"
  value_count {
    min: 1
    max: 8
  }
  annotation {
    extra_metadata {
      [type.googleapis.com/google.protobuf.Struct] {
      }
    }
  }
}
"""


def test_the_schema_is_the_one_that_is_shipped(tmp_path):
    """schemas/sequences.pbtxt was written by Merlin."""
    merlin_free.write_split_schema(1000, 50, tmp_path / "schema.pbtxt")
    assert (tmp_path / "schema.pbtxt").read_bytes() == (resource("schemas") / "sequences.pbtxt").read_bytes()


def test_lengths_are_read_of_both_texts(tmp_path):
    (tmp_path / "schema.pbtxt").write_text(WRITTEN_OUT)
    assert merlin_free.longest_row(tmp_path / "schema.pbtxt") == 8
    with pytest.raises(InputError, match="value_count of item_id"):
        merlin_free.longest_row(resource("schemas") / "items.pbtxt")


def test_a_workflow_of_a_stopped_run_does_not_stay(tmp_path):
    (tmp_path / "workflow" / "categories").mkdir(parents=True)
    assert merlin_free.categorify(pd.Series(["b", "a"]), tmp_path / "workflow").tolist() == [3, 4]
    assert not (tmp_path / "workflow").exists()


def test_the_adapter_is_chosen_by_what_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert adapter() is merlin_free
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delitem(sys.modules, "llmcfsr_merlin.dataset.prepare.nvtabular_adapter", raising=False)
    monkeypatch.setitem(sys.modules, "nvtabular", None)
    with pytest.raises(MissingDependency, match=r"installed without nvtabular.*uninstall nvtabular"):
        adapter()
