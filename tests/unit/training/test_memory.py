"""A training that cannot fit says so before it starts. The estimate itself is measured by benchmarks/memory.py."""

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training import train as training
from llmcfsr_merlin.training.memory import RANKED, check_memory, ranked_users, training_bytes

MODEL = ModelConfig()


def test_the_estimate_grows_with_what_memory_is_made_of():
    least = training_bytes(MODEL, 100_000, 384)
    assert training_bytes(MODEL, 100_000, 384, 128) > least
    assert training_bytes(MODEL, 200_000, 384) > least
    assert training_bytes(MODEL, 100_000, 768) > least
    assert training_bytes(MODEL.model_copy(update={"hidden": 128}), 100_000, 384) > least
    id_only = MODEL.model_copy(update={"views": ("collaborative",), "content_match": False, "pca_init": False})
    assert training_bytes(id_only, 100_000, None) < least


@pytest.mark.parametrize("rows", [10, 12_000, 300_000, 10_000_000, 200_000_000])
def test_validation_holds_a_bounded_number_of_scores(rows):
    users = ranked_users(rows)
    assert 1 <= users <= 256
    assert users == 1 or users * rows <= RANKED


def test_too_little_memory_is_refused_with_what_to_do():
    needed = training_bytes(MODEL, 1_000_000, 384)
    check_memory(MODEL, 1_000_000, 384, None, needed)
    with pytest.raises(InputError, match=r"1,000,000 items needs about .* GB.*lower model\.hidden.*embed\.dimension"):
        check_memory(MODEL, 1_000_000, 384, None, needed - 1)


def test_training_asks_before_it_allocates(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "available_memory", lambda: 1 << 20)
    train = Config.load(None, ["name=x", "train.device=cpu", "train.batch_size=8"]).train
    with pytest.raises(InputError, match=r"0\.0 GB free"):
        training.train_network(
            MODEL, train, tmp_path, tmp_path / "work", rows=100, max_length=5, train_counts=None, vectors=None
        )
    assert not (tmp_path / "work").exists()
