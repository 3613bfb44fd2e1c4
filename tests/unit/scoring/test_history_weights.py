"""Weights of both history rules: scored together as each alone, kept on disk, and not missed where a model has none."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcfsr_merlin.dataset.names import FIRST_ITEM, MODEL_CONFIG, MODEL_WEIGHTS
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.ranker import Ranker
from tests.models import model_config, random_model

ROWS = 40
MASKED = {"network": 1.0, "content": 4.0, "content_cold": 2.0, "transitions": 1.5, "transitions_borrowed": 0.0,
          "co_occurrence": 8.0}  # fmt: skip
KEPT = {"network": 1.0, "content": 0.0, "content_cold": 0.0, "transitions": 0.5, "transitions_borrowed": 1.0,
        "co_occurrence": 0.0}  # fmt: skip

BOTH = {"masked": MASKED, "kept": KEPT}


@pytest.fixture
def model():
    model = random_model(model_config(hidden=8, transition_neighbours=5), ROWS, 9)
    model.set_weights(MASKED)
    model.history_weights = {"masked": MASKED, "kept": KEPT}
    return model


@pytest.fixture
def histories():
    return torch.randint(FIRST_ITEM, ROWS, (6, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bulk", [False, True])
def test_both_rules_score_as_each_alone(model, histories, bulk):
    found = Ranker(model, bulk).by_history("masked")(histories)
    for rule, weights in (("masked", MASKED), ("kept", KEPT)):
        model.set_weights(weights)
        torch.testing.assert_close(found[rule], Ranker(model, bulk).scores(histories))
    assert model.history_weights == {}, "weights set by hand are those of both rules"


def test_features_are_computed_once(model, histories, monkeypatch):
    calls, network = [], model.scorers["network"]
    states = network.network.user_states
    monkeypatch.setattr(network.network, "user_states", lambda codes: calls.append(1) or states(codes))
    Ranker(model, bulk=True).by_history("masked")(histories)
    assert calls == [1]


def test_a_model_of_one_set_of_weights_has_scores_of_the_rule_that_is_served(model, histories):
    model.set_weights({})
    assert list(Ranker(model).by_history("kept")(histories)) == ["kept"]
    same = {"masked": MASKED, "kept": dict(MASKED)}
    model.history_weights = same
    found = Ranker(model).by_history("kept")(histories)
    assert found["masked"] is found["kept"], "equal weights share one tensor"


def test_one_feature_needs_no_weights(histories):
    model = random_model(model_config(hidden=8, content_match=False, transition_neighbours=0), ROWS, 9)
    assert len(model.features) == 1 and isinstance(Ranker(model).by_history("kept")(histories), torch.Tensor)


def test_they_are_stored_with_the_model(model, tmp_path):
    save_model(model, tmp_path, "hash")
    loaded = load_model(tmp_path)
    assert loaded.history_weights == {"masked": MASKED, "kept": KEPT} and loaded.weights == MASKED
    described = json.loads((tmp_path / MODEL_CONFIG).read_text())
    described["history_weights"]["kept"].pop("content")
    (tmp_path / MODEL_CONFIG).write_text(json.dumps(described))
    with pytest.raises(InputError, match="history_weights: kept has weights of"):
        load_model(tmp_path)
    described.pop("history_weights")  # a model of an earlier version
    (tmp_path / MODEL_CONFIG).write_text(json.dumps(described))
    assert load_model(tmp_path).history_weights == {}


def test_a_model_of_before_gives_the_answers_that_it_gave(model, histories, tmp_path):
    """It matched items of the history with themselves and gave them transitions, items without transitions borrowed
    none, and nothing stood beside transitions."""
    of_before = {"content": "match_itself", "transitions": "score_history"}
    for scorer, name in of_before.items():
        part = model.scorers[scorer]
        part.settings = model.config.scorers[scorer] = part.settings.model_copy(update={name: True})
    later = {"transitions_borrowed": 0.0, "co_occurrence": 0.0}
    model.set_weights(later)
    model.history_weights = {rule: weights | later for rule, weights in BOTH.items()}
    save_model(model, tmp_path, "hash")
    description = json.loads((tmp_path / MODEL_CONFIG).read_text())
    for scorer, name in of_before.items():
        del description["model"]["scorers"][scorer][name]
    for weights in description["history_weights"].values():
        for name in later:
            del weights[name]
    (tmp_path / MODEL_CONFIG).write_text(json.dumps(description))
    tensors = load_file(tmp_path / MODEL_WEIGHTS)
    tensors["transitions/weights"] = tensors["transitions/weights"][:1].clone()
    del tensors["transitions/next_cosines"]
    tensors["transitions/next_weights"] = tensors["transitions/next_weights"].float() + 1e-6  # too fine for 16 bits
    model.scorers["transitions"].next_weights = tensors["transitions/next_weights"].clone()
    save_file(tensors, tmp_path / MODEL_WEIGHTS)
    loaded = load_model(tmp_path)
    assert loaded.history_weights == model.history_weights
    torch.testing.assert_close(Ranker(loaded).scores(histories), Ranker(model).scores(histories))
    for scorer, name in of_before.items():
        part = model.scorers[scorer]
        part.settings = part.settings.model_copy(update={name: False})
        assert not torch.equal(Ranker(loaded).scores(histories), Ranker(model).scores(histories))
        part.settings = part.settings.model_copy(update={name: True})
