"""The model card that `train` and `export` write into the model's folder."""

import dataclasses

import pytest
import yaml

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.runtime.layout import CARD
from llmcfsr_merlin.text.encoders.known import KNOWN
from llmcfsr_merlin.text.item_encoder import EncoderRecipe
from llmcfsr_merlin.training.model_card import write_card

STAGES = ("ingest", "prepare", "train", "evaluate", "export")
MODEL = {"name": "mpnet", "revision": "1", "sha256": "5a"}
ENCODER = EncoderRecipe(MODEL, "generic", "generic-v1", "", False, "mean", 128, "float32", "none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a model in closed form, whose history is kept in the ranking."""
    run = tmp_path_factory.mktemp("card") / "run"
    settings = ["data.synthetic_users=200", "data.synthetic_items=60", "evaluate.baselines=[popularity]"]
    config = Config.load("demo", [*settings, "evaluate.exclude_history=false"], "item_knn")
    run_stages(config, run, STAGES)
    return config, run


def test_train_describes_data_protocol_settings_and_limits(finished):
    config, run = finished
    card = (run / "train" / CARD).read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "llmcfsr-merlin"
    assert "# item_knn\n" in card and "one scorer, item_knn" in card
    assert "| users | " in card and "| split | leave_one_out |" in card
    assert "History rule: **kept**, the user's own items are ranked too" in card
    assert "have not been ranked" in card and "## Limits" in card and "## Item vectors" not in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].rstrip().removesuffix("```"))
    assert settings == config.model_dump(mode="json", include={"model", "train"})


def test_export_adds_the_figures_of_the_test_items_with_their_history_rule(finished):
    _, run = finished
    card = (run / "export" / CARD).read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| item_knn |", "| popularity |"))]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| item_knn", "kept"], ["| item_knn", "masked"], ["| popularity", "kept"], ["| popularity", "masked"],
    ]  # fmt: skip
    assert all(" / " in row for row in rows) and "| model | history | all items |" in card


def test_figures_of_another_model_are_not_shown(finished, tmp_path):
    config, run = finished
    other = config.with_settings({"model.scorers.item_knn.neighbours": 5})
    run_stages(other, run, ("train", "export"))
    assert "have not been ranked" in (run / "export" / CARD).read_text()
    run_stages(config, run, STAGES)
    assert "| item_knn | kept |" in (run / "export" / CARD).read_text()


def test_an_edited_card_does_not_make_a_stage_run_again(finished):
    config, run = finished
    (run / "train" / CARD).write_text("# Ours\n")
    lines = []
    run_stages(config, run, ("train", "export"), report=lines.append)
    assert [line for line in lines if "..." not in line] == [
        "train: nothing changed, skipped", "export: nothing changed, skipped"
    ]  # fmt: skip
    assert (run / "train" / CARD).read_text() == "# Ours\n"


@pytest.mark.parametrize("name, licence", [("mpnet", KNOWN["mpnet"].licence), ("shop/own", "see its own model card")])
def test_the_encoder_stands_with_its_licence(finished, tmp_path, name, licence):
    _, run = finished
    embedded = tmp_path / "embed"
    embedded.mkdir()
    dataclasses.replace(ENCODER, model=MODEL | {"name": name}).save(embedded)
    config = Config.load("demo")
    write_card(tmp_path, config, tmp_path, run / "train", {"weights": {"network": 1.0, "content": 2.0}})
    card = (tmp_path / CARD).read_text()
    assert f"| encoder | {name} (1) |" in card and f"| licence of the encoder | {licence} |" in card
    assert "does not hold the data" in card and "| history masked | 1.0 | 2.0 |" in card.replace("kept", "masked")
