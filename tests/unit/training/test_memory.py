"""A training that cannot fit says so before it starts. The estimate itself is measured by benchmarks/memory.py."""

import shutil

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.dataset import Dataset, Shape
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training import fit
from llmcfsr_merlin.training.memory import RANKED, check_memory, ranked_users, training_bytes
from tests.unit.evaluation.prepared import write_prepare

MODEL = Config.load(None).model


def bytes_of(n_items: int, semantic: int | None, lexical: int | None = None, model=MODEL) -> int:
    return training_bytes(model, Shape(n_items, 50, semantic, lexical))


def test_the_estimate_grows_with_what_memory_is_made_of():
    least = bytes_of(100_000, 384)
    assert bytes_of(100_000, 384, 128) > least
    assert bytes_of(200_000, 384) > least
    assert bytes_of(100_000, 768) > least
    wider = Config.load(None, ["model.scorers.network.hidden=256"]).model
    assert bytes_of(100_000, 384, model=wider) > least
    assert bytes_of(100_000, None, model=ModelConfig()) < least


@pytest.mark.parametrize("rows", [10, 12_000, 300_000, 10_000_000, 200_000_000])
def test_validation_holds_a_bounded_number_of_scores(rows):
    users = ranked_users(rows)
    assert 1 <= users <= 256
    assert users == 1 or users * rows <= RANKED


def test_too_little_memory_is_refused_with_what_to_do():
    needed, shape = bytes_of(1_000_000, 384), Shape(1_000_000, 50, 384)
    check_memory(MODEL, shape, needed)
    with pytest.raises(InputError, match=r"1,000,000 items needs about .* GB.*lower the network's hidden.*dimension"):
        check_memory(MODEL, shape, needed - 1)


def test_training_asks_before_it_allocates(monkeypatch, tmp_path):
    write_prepare(tmp_path, {"a": [3, 4, 5]}, 10, parts=1)
    shutil.copytree(tmp_path / "sequences", tmp_path / "train")
    monkeypatch.setattr(fit, "available_memory", lambda: 1 << 20)
    train = Config.load(None, ["name=x", "train.device=cpu", "train.batch_size=8"]).train
    with pytest.raises(InputError, match=r"0\.0 GB free"):
        fit.fit_model(ModelConfig(), train, Dataset(tmp_path), tmp_path / "work")
    assert not (tmp_path / "work").exists()
