"""The search chooses on validation items, never sees the test items, and goes on where it stopped."""

import shutil

import pytest
import torch

from llmcfsr_merlin.dataset import prepare_stage as prepare
from llmcfsr_merlin.dataset.dataset import Dataset

pytest.importorskip("optuna")
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import SEQUENCES
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training import search as module
from llmcfsr_merlin.training.search import BEST, search
from tests.worlds import attribute_world, write_ingest

SETTINGS = [
    "model.scorers.network.hidden=16", "model.scorers.network.dropout=0.2", "model.scorers.transitions.neighbours=9",
    "train.negatives=64", "train.learning_rate=0.001", "train.batch_size=64", "train.epochs=2",
    "prepare.max_length=10",
]  # fmt: skip
DROPOUT = "model.scorers.network.dropout"
SPACE = {DROPOUT: [0.5], "train.learning_rate": [0.00001, 0.001]}


@pytest.fixture(scope="module")
def config():
    return Config.load(None, SETTINGS, "sasrec")


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("searched")
    write_ingest(run, *attribute_world())
    prepare.run(config, run)
    return run


def quality(trials: list[dict]) -> list:
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


@pytest.fixture(scope="module")
def trials(config, run):
    return search(config, run, SPACE, 3)


def test_the_recipe_is_tried_first_and_the_best_can_be_used(config, run, trials):
    settings = [trial["settings"] for trial in trials]
    assert len(trials) == 3 and all(one not in settings[:place] for place, one in enumerate(settings))
    first = next(trial for trial in trials if trial["trial"] == 0)
    assert first["settings"] == {DROPOUT: 0.2, "train.learning_rate": 0.001}
    values = [trial["ndcg@10"] for trial in trials]
    assert values == sorted(values, reverse=True) and values[0] > 0
    best = Config.load(None, SETTINGS[-1:], run / "search" / BEST)
    assert (best.model.network.dropout, best.train.learning_rate) == tuple(trials[0]["settings"].values())
    assert (best.model.network.hidden, best.train.seed) == (16, config.train.seed)
    assert not list((run / "search").glob("trial-*"))


def test_finds_the_same_without_the_test_items(config, run, trials, tmp_path):
    """Whoever reads the test split or the whole sequences fails here."""
    shutil.copytree(run / "prepare", tmp_path / "prepare")
    for held_out in ("test", SEQUENCES):
        shutil.rmtree(tmp_path / "prepare" / held_out)
    assert quality(search(config, tmp_path, SPACE, 3)) == quality(trials)


def test_goes_on_where_it_stopped(config, run, trials, monkeypatch):
    trained = []
    real = module.fit_model
    monkeypatch.setattr(module, "fit_model", lambda *a, **k: trained.append(1) or real(*a, **k))
    assert quality(search(config, run, SPACE, 3)) == quality(trials) and not trained
    more = search(config, run, SPACE, 5)  # four settings in all
    assert len(more) == 4 and len(trained) == 1


@pytest.mark.parametrize(
    "space, message",
    [
        ({"prepare.min_item": [3]}, "sections model and train, found prepare.min_item"),
        ({DROPOUT: 0.5}, r"a list of values for model\.scorers\.network\.dropout, found 0\.5"),
        ({"model.dropout": [2]}, r"dropout.*less than 1"),
        ({"model.scorers.network.drop": [0.5]}, r"drop.*xtra|unknown key"),
        ({"model.scorers.network.views": [["semantic"]]}, "a single value"),
    ],
)
def test_a_space_that_does_not_fit(config, run, space, message):
    with pytest.raises(InputError, match=message):
        search(config, run, space, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_alone_is_tried_on_a_gpu(config, run, tmp_path):
    """Nothing of it is calibrated: the Trainer brings the network to the device, and who brings the rest?"""
    found = module.try_on_validation(config, Dataset.load(run).without_test(), tmp_path / "work")
    assert found["ndcg@10"] == pytest.approx(found["network ndcg@10"], abs=0.05) and found["epochs"] == 2
