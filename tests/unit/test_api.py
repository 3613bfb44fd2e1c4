"""The public names and their signatures: changing one is a decision, with a line in CHANGELOG.md."""

import importlib
import inspect

import pytest

import llmcfsr_merlin

SIGNATURES = {
    "config.load:Config.load": "(recipe, overrides, model)",
    "config.load:Config.with_model": "(self, model)",
    "config.load:Config.with_settings": "(self, settings)",
    "dataset.dataset:Dataset": "(prepared, embedded, max_length)",
    "dataset.dataset:Dataset.load": "(run)",
    "dataset.dataset:Dataset.from_frames": "(interactions, items, *, config, run)",
    "dataset.dataset:Dataset.files": "(self, split)",
    "dataset.dataset:Dataset.sequences": "(self, held_out)",
    "dataset.dataset:Dataset.vectors": "(self, name)",
    "recommender:Recommender.fit": "(dataset, model, *, config, report)",
    "recommender:Recommender.load": "(path, device, bulk, shortlist, allow, revision, uncertain, shard)",
    "recommender:Recommender.save": "(self, folder)",
    "recommender:Recommender.recommend": "(self, histories, k, **filters)",
    "recommender:Recommender.answer": "(self, histories, k, *, exclude_seen, allow, deny)",
    "serving.client:Client": "(url, timeout)",
    "serving.client:Client.recommend": "(self, histories, k, **filters)",
    "serving.client:Client.answer": "(self, histories, k, *, exclude_seen, allow, deny)",
    "pipeline:run_stages": "(config, run_dir, stages, *, force, report)",
    "training.fit:fit_model": "(model, train, dataset, work, *, item_table, exclude_history, tail_item, report, warm, "
    "watch)",
    "scoring.scorer:Scorer": "(settings, shape, vectors)",
    "scoring.scorer:Scorer.fit": "(settings, dataset, vectors, context)",
    "scoring.scorer:Scorer.forward": "(self, histories, items)",
    "scoring.scorer:Scorer.bound": "(self, histories)",
    "scoring.scorer:Scorer.append_items": "(self, new)",
    "scoring.scorer:Scorer.memory_bytes": "(settings, shape)",
    "scoring.scorer:Scorer.graph": "(self, batch_size)",
    "scoring.ensemble:Ensemble.scores": "(self, histories, items)",
    "scoring.ensemble:Ensemble.explain": "(self, histories, items, weights)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    module, _, path = name.partition(":")
    found = importlib.import_module(f"llmcfsr_merlin.{module}")
    for part in path.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    shown, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        shown.append(("**" if parameter.kind is parameter.VAR_KEYWORD else "") + parameter.name)
    assert f"({', '.join(shown)})" == SIGNATURES[name]
    assert inspect.getdoc(found), "a public name has a docstring"


def test_public_names():
    assert sorted(llmcfsr_merlin.__all__) == [
        "Client", "Config", "Dataset", "InputError", "Recommender", "__version__", "run_stages",
    ]  # fmt: skip
    for name in llmcfsr_merlin.__all__:
        assert getattr(llmcfsr_merlin, name)
