"""serve.engine=onnxruntime computes the same scores as torch, for every history, and says what it lacks in one line."""

import logging
import sys

import numpy as np
import pytest
import torch

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.scoring.network.given_views import CompiledStates
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import EXPLAIN, Encode, Rank
from tests.models import model_config, random_model
from tests.served import IDS, write_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from llmcfsr_merlin.serving import onnx_engine

ITEMS, LENGTH = 80, 12
MODELS = {
    "two views": {},
    "masked, its mask read as an item": {"backbone": "bert4rec"},
    "left padded": {"backbone": "bsarec", "views": ("collaborative",)},
    "candidates of their own": {"backbone": "caser", "layers": 1, "views": ("collaborative",)},
    "encoders side by side": {"backbone": "emkd", "views": ("collaborative",)},
    "recurrent, a frozen view": {"backbone": "gru4rec", "views": ("null_space",)},
}


def histories(rows: int) -> torch.Tensor:
    """Of every length, 0 included."""
    found = torch.randint(3, ITEMS, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    return found.masked_fill(torch.arange(LENGTH) >= torch.arange(rows)[:, None] % (LENGTH + 1), 0)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_torchs_for_every_length_and_batch(name):
    ranker = Ranker(random_model(model_config(**MODELS[name]), ITEMS, LENGTH))
    asked = histories(30)
    wanted = ranker.scores(asked)
    onnx_engine.compile_model(ranker.model)
    network = ranker.model.scorers["network"]
    assert network._compiled is not None and network._product is not None
    torch.testing.assert_close(ranker.scores(asked), wanted, atol=1e-5, rtol=1e-5)
    for row in (0, 1, 5, 12):
        torch.testing.assert_close(ranker.scores(asked[row : row + 1]), wanted[row : row + 1], atol=1e-5, rtol=1e-5)
    assert not torch.equal(network._compiled(asked[1:2]), network.network.user_states(asked[2:3]))


def test_the_vectors_of_a_catalogue_without_a_table_of_cosines_are_a_compiled_product(monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.scoring.scorers.content.SMALL", 1)
    ranker = Ranker(random_model(model_config(), ITEMS, LENGTH))
    wanted = ranker.scores(histories(30))
    onnx_engine.compile_model(ranker.model)
    content = ranker.model.scorers["content"]
    assert content._product is not None and not content.estimates(1)
    torch.testing.assert_close(ranker.scores(histories(30)), wanted, atol=1e-5, rtol=1e-5)


def test_an_engine_that_computes_something_else_is_refused(monkeypatch):
    right = onnx_engine._run
    monkeypatch.setattr(onnx_engine, "_run", lambda *arguments: right(*arguments) * 1.01)
    with pytest.raises(InputError, match=r"differ from torch's by .*: export serve.engine=torch"):
        onnx_engine.compile_model(random_model(model_config(), ITEMS, LENGTH).prepare())


def test_added_items_are_scored_after_compiling():
    grown, plain = (Ranker(random_model(model_config(), ITEMS, LENGTH)) for _ in range(2))
    onnx_engine.compile_model(grown.model)
    for model in (grown.model, plain.model):
        model.append_items(NewItems(5, semantic=torch.randn(5, 16, generator=torch.Generator().manual_seed(3))))
    asked = histories(9)
    wanted = Ranker(plain.model).scores(asked)
    again = Ranker(grown.model)
    onnx_engine.compile_model(again.model)
    assert wanted.shape == (9, ITEMS + 5)
    torch.testing.assert_close(again.scores(asked), wanted, atol=1e-5, rtol=1e-5)


def test_what_onnx_cannot_express_and_what_is_too_large_stay_with_torch(monkeypatch, caplog):
    compiler = onnx_engine.OnnxCompiler(1)
    monkeypatch.setattr(onnx_engine, "_LARGEST", 100)
    assert compiler.product(torch.zeros(11, 10)) is None

    class Strange(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with caplog.at_level(logging.WARNING):
        assert compiler.module(Strange(), [torch.zeros(2)], [(0,)]) is None
    assert "torch computes what ONNX cannot express (Strange)" in caplog.text
    monkeypatch.setattr(CompiledStates, "by", lambda *_: None)
    ranker = Ranker(random_model(model_config(), ITEMS, LENGTH))
    wanted = ranker.scores(histories(5))
    onnx_engine.compile_model(ranker.model)
    assert torch.equal(ranker.scores(histories(5)), wanted)


def test_the_step_answers_and_explains_as_with_torch(tmp_path):
    trained = write_model(tmp_path / "train", lexical=8)
    encode = Encode(trained, Limits())
    rows = [["B001", "B002"], [], ["zzz"], IDS[:30], ["B007"] * 3]
    requests = [{"HISTORY": np.array([[raw.encode() for raw in row] or [b""]], dtype=object)} for row in rows]
    requests[3]["EXCLUDE_SEEN"] = np.array([[True]])
    requests[0]["ALLOW"] = np.array([[b"B004", b"B009", b"B050"]], dtype=object)
    encoded = [{**one, EXPLAIN: np.ones((1, 1), bool)} for one in encode(requests)]
    plain, fast = Rank(trained, Limits()), Rank(trained, Limits(engine="onnxruntime"))
    assert fast.recommender.ranker.model.scorers["content"].estimates(9)
    for wanted, found in zip(plain(encoded), fast(encoded)):
        assert (wanted["ITEM_CODES"] == found["ITEM_CODES"]).all()
        np.testing.assert_allclose(found["SCORES"], wanted["SCORES"], atol=1e-4)
        assert [one[:20] for one in found["REASONS"][0]] == [one[:20] for one in wanted["REASONS"][0]]


def test_without_the_package_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"serve.engine=onnxruntime needs onnx and onnxruntime: pip install"):
        Rank(write_model(tmp_path / "train"), Limits(engine="onnxruntime"))
