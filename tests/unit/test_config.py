"""Settings: one tree, errors that name the key, models laid over recipes."""

import pytest

from llmcfsr_merlin.config import Config
from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.settings import models


def test_a_baseline_is_laid_over_the_recipe_not_over_the_model():
    config = Config.load(None, ["train.epochs=3", "model.hidden=32"], "llm_esr")
    assert (config.train.loss, config.train.distil, config.model.hidden) == ("bce", 0.1, 32)
    baseline = config.with_model("sasrec")
    assert (baseline.train.loss, baseline.train.distil) == ("uniform_softmax", 0)
    assert (baseline.train.epochs, baseline.model.hidden) == (3, 32)
    assert baseline.with_model("llm_esr").train == config.train


def test_an_override_wins_over_the_model():
    assert Config.load(None, ["train.loss=full_softmax"], "llm_esr").train.loss == "full_softmax"


@pytest.mark.parametrize("name", models())
def test_model_files_hold_only_their_own_sections(name):
    assert Config.load(None, model=name).model.name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown key train.epoch .did you mean epochs"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, found 0"),
        ("train.epochs=many", "train.epochs: .* found 'many'"),
        ("train", "expected an override like train.epochs=3"),
        ("name.x=1", "unknown key|Input should be|is a value"),
        ("model.views=[semantic, collaborative]", "views must be"),
        ("model.hidden=63", "multiple of heads"),
        ("evaluate.baselines=[popularty]", "expected baselines out of popularity"),
        ("train.lr=[", "not YAML"),
    ],
)
def test_bad_settings_are_named_in_one_line(override, message):
    with pytest.raises(InputError, match=message) as error:
        Config.load(None, ["name=x", override])
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_or_model_lists_what_there_is():
    with pytest.raises(InputError, match="found 'nothing'"):
        Config.load("nothing")
    with pytest.raises(InputError, match=r"llm_cfsr.*sasrec.*found 'nothing'"):
        Config.load(None, model="nothing")


def test_settings_are_recorded_in_the_run_and_read_again(tmp_path):
    config = Config.load(None, ["train.epochs=3"], "llm_esr")
    config.record(tmp_path)
    assert Config.recorded(tmp_path).model_dump() == config.model_dump()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is not readable"):
        Config.recorded(tmp_path)
    with pytest.raises(InputError, match="expected a run directory"):
        Config.recorded(tmp_path / "nowhere")
