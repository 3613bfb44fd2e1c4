"""Models that version 0.1 trained are read, and answer as they did (answers.json was written by version 0.1)."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmcfsr_merlin import Recommender
from llmcfsr_merlin.scoring.checkpoint import FORMAT

MODELS = Path(__file__).parent / "models_0_1"


@pytest.mark.parametrize("name", ["llm_cfsr", "sasrec"])
def test_a_model_of_version_0_1_gives_the_same_answers(name, tmp_path):
    expected = json.loads((MODELS / name / "answers.json").read_text())
    recommender = Recommender.load(MODELS / name)
    recommender.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model.json").read_text())["format"] == FORMAT
    for model in (recommender, Recommender.load(tmp_path / "model")):
        found = model.answer(expected["histories"], 6, exclude_seen=True)
        assert found.items.tolist() == expected["items"]
        np.testing.assert_allclose(np.nan_to_num(found.scores, nan=-1), expected["scores"], atol=1e-6)
