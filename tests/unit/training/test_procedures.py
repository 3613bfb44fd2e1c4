"""Which Trainer trains, by what is installed."""

import importlib.util
import sys

import pytest

from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.training.procedures import fit_of, resolved


@pytest.mark.parametrize("installed", [True, False])
def test_auto_takes_transformers4rec_where_it_is(monkeypatch, installed):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    assert resolved("auto") == ("transformers4rec" if installed else "transformers")
    assert resolved("transformers4rec") == "transformers4rec"


def test_asked_for_by_name_it_must_be_there(monkeypatch):
    for module in ("llmcfsr_merlin.training.t4rec_trainer", "llmcfsr_merlin.training.t4rec"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "transformers4rec", None)
    with pytest.raises(MissingDependency, match=r"needs transformers4rec.*which.*procedure=transformers"):
        fit_of("transformers4rec")
