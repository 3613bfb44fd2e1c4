"""benchmarks/quality.py: what a change of a trained model changes."""

import pytest
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.scorer import FitContext
from tests.unit.evaluation.prepared import random_sequences, write_prepare

BENCHMARKS = resource("pipelines").parent / "benchmarks"


def test_scorers_with_other_settings_are_fitted_anew_and_the_others_stay(tmp_path, monkeypatch):
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ stands beside the package in a checkout only")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    quality_runs = pytest.importorskip("quality_runs")
    counts = write_prepare(tmp_path, random_sequences(80, 40), 40)
    dataset = Dataset(tmp_path, max_length=20)
    config = Config.load(None, ["model.scorers.popularity.decay=0.5"], "popularity")
    context = FitContext(tmp_path, lambda network: pytest.fail("nothing is trained here"))
    before = Ensemble.fit(config.model, dataset, context)
    before.history_rule = "kept"
    change = {"popularity": {"decay": 1.0}}
    after = quality_runs._with_others(before, config, dataset, change | {"item_knn": {"neighbours": 5}})
    assert (after.names, after.history_rule) == (["popularity", "item_knn"], "kept")
    plain = torch.from_numpy(counts).float().log1p()
    torch.testing.assert_close(after.scorers["popularity"].log_counts, plain)
    assert not torch.allclose(before.scorers["popularity"].log_counts, plain)
    only_more = quality_runs._with_others(before, config, dataset, {"item_knn": {"neighbours": 5}})
    assert only_more.scorers["popularity"] is before.scorers["popularity"]
