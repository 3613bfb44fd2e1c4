"""`llmcfsr update`: a day on top of yesterday's run, day after day."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin import Config, InputError, Recommender, run_stages
from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.layout import CARD
from llmcfsr_merlin.runtime.manifest import Manifest
from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.serving.bundle import FOLDER, Bundle
from llmcfsr_merlin.serving.repository import repository_of, versions
from llmcfsr_merlin.text import item_encoder
from llmcfsr_merlin.update.model_stages import quality_of_day
from llmcfsr_merlin.update.update import update
from tests.days import shop, write_days

PLAIN = {"train.procedure": "transformers", "update.check_served": False, "serve.layout": "merged"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three days: the run of the first, `base`, by the default model, exported."""
    folder = tmp_path_factory.mktemp("shop")
    write_days(folder)
    run_stages(shop(folder, **PLAIN), folder / "base", ("ingest", "prepare", "embed", "train", "export"))
    return folder


@pytest.fixture(scope="module")
def first(folder):
    """The first day's update; the texts that were encoded for it are counted."""
    encoded = []
    with pytest.MonkeyPatch.context() as patch:
        whole = item_encoder.ItemEncoder.encode_rows

        def counted(self, rows, *arguments, **options):
            encoded.append(len(rows))
            return whole(self, rows, *arguments, **options)

        patch.setattr(item_encoder.ItemEncoder, "encode_rows", counted)
        done = update(shop(folder, **PLAIN), (str(folder / "day1.csv"),), folder / "base", folder / "one")
    return done, encoded


def test_new_items_alone_are_encoded_and_old_ids_stay(folder, first):
    done, encoded = first
    old, new = (Dataset.load(folder / name) for name in ("base", "one"))
    count = len(old.vocabulary.ids)
    assert new.vocabulary.ids[:count].tolist() == old.vocabulary.ids.tolist() and encoded == [4]
    assert sorted(new.vocabulary.ids[count:]) == ["i0056", "i0057", "i0058", "i0059"]
    for name in ("semantic", "lexical"):
        vectors = new.vectors(name)
        assert np.array_equal(vectors[: count + 3], old.vectors(name)) and vectors[count + 3 :].any()
    assert done.manifests["yesterday"].counts["new_items"] == 4


def test_training_goes_on_from_yesterdays_weights(folder, first):
    done, _ = first
    old, grown, new = (
        load_model(folder / path).scorers["network"].network for path in ("base/train", "one/yesterday", "one/train")
    )
    before, start, after = (network.items.collaborative.weight.detach().numpy() for network in (old, grown, new))
    assert np.array_equal(before, start[: len(before)]) and not start[len(before) :].any()
    moved = np.linalg.norm(after[3 : len(before)] - before[3:], axis=1)
    assert moved.max() > 0 and np.median(moved) < 0.2 * np.median(np.linalg.norm(before[3:], axis=1))
    assert after[len(before) :].any() and (new.items.confidence[len(before) :] > 0).all()
    history = json.loads((folder / "one" / "train" / "history.json").read_text())
    assert len(history) == Config().update.epochs
    assert done.manifests["train"].counts["weights"] == load_model(folder / "base" / "train").weights, "few held out"


def test_yesterdays_model_is_asked_before_and_the_new_one_after(folder, first):
    done, _ = first
    rows = json.loads((folder / "one" / "day" / "metrics.json").read_text())
    assert {row["recipe"] for row in rows} == {"yesterday"}
    counts = done.manifests["prepare"].counts
    assert done.manifests["day"].counts["interactions"] == counts["day_targets"] > 200
    assert quality_of_day(shop(folder), folder / "one") > 0.1
    found = done.manifests["gate"].counts["quality"]
    assert found["low"] <= found["value"] - found["base"] <= found["high"] and 0 < found["count"] <= counts["test_rows"]
    ranks = pq.read_table(folder / "one" / "evaluate" / "ranks.parquet").to_pandas()
    assert set(ranks["recipe"]) == {"llm_cfsr", "yesterday"}
    card = (folder / "one" / "train" / CARD).read_text()
    assert "| split | update |" in card and "Validation is what half" in card


def test_the_same_command_does_nothing_twice(folder, first):
    done = update(shop(folder, **PLAIN), (str(folder / "day1.csv"),), folder / "base", folder / "one")
    assert done.seconds == {}


def test_a_second_day_by_the_command_line_is_published(folder, first, tmp_path, capsys):
    """Published once, however often the command runs; a catalogue retires items; a new item needs no interaction."""
    live = tmp_path / "live"
    shutil.copytree(folder / "base" / "export", live / "export")
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items[3:]))
    (tmp_path / "new.jsonl").write_text(json.dumps(items[5] | {"item_id": "n1"}))
    missing = {"update.retire": "missing", "data.items": [str(tmp_path / "items.jsonl")]}
    shop(folder, **PLAIN).with_settings(missing).record(tmp_path / "settings")
    words = [
        "update", str(tmp_path / "settings" / "config.json"), "--day", str(folder / "day2.csv"),
        "--from", str(folder / "one"), "--run", str(tmp_path / "two"), "--items", str(tmp_path / "new.jsonl"),
        "--publish", str(live),
    ]  # fmt: skip
    for _ in range(2):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert "published: version 2" in said and "yesterday's model on the day's 160 interactions" in said
    repository = repository_of(live)
    assert versions(repository) == [1, 2]
    published = Recommender.load(repository / "recommend" / "2" / FOLDER)
    assert Bundle.open(repository / "recommend" / "2" / FOLDER).hash == Bundle.open(tmp_path / "two").hash
    found = published.answer([["i0000", "i0005"], ["i0010"], []], 70)
    assert not {"i0000", "i0001", "i0002"} & set(found.items.ravel()) and found.unknown.tolist() == [0, 0, 0]
    assert "n1" in found.items[0] and found.items[0].tolist().index("n1") < 50
    assert json.loads(said.splitlines()[-1])["version"] == 2


def test_a_model_that_is_worse_stays_at_home(folder, first, tmp_path):
    """Training that breaks the model: the gate names the figures, nothing is published, and the day can be repeated."""
    live = tmp_path / "live"
    shutil.copytree(folder / "base" / "export", live / "export")
    broken = shop(folder, **PLAIN, **{"train.learning_rate": 2.0, "update.learning_rate": 1.0, "update.held_out": 0.9})
    day = (str(folder / "day1.csv"),)
    for _ in range(2):
        with pytest.raises(InputError, match=r"gate keeps the model back: NDCG@10 0\.\d+, yesterday's model 0\.\d+"):
            update(broken, day, folder / "base", tmp_path / "one", publish=live)
    assert versions(repository_of(live)) == [1] and not (tmp_path / "one" / "gate").exists()


def test_what_does_not_fit_is_said(folder, first, tmp_path):
    config, day = shop(folder, **PLAIN), (str(folder / "day2.csv"),)
    with pytest.raises(InputError, match="expected a new run directory for the day"):
        update(config, day, folder / "one", folder / "one")
    with pytest.raises(InputError, match=r"expected a finished stage in .*none/prepare"):
        update(config, day, tmp_path / "none", tmp_path / "two")
    with pytest.raises(InputError, match=r"data\.format=synthetic generates its log"):
        update(config.with_settings({"data.format": "synthetic"}), day, folder / "one", tmp_path / "two")
    with pytest.raises(InputError, match=r"expected prepare\.max_length 12 as in"):
        update(config.with_settings({"prepare.max_length": 9}), day, folder / "one", tmp_path / "two")
    with pytest.raises(InputError, match=r"update\.retire=missing: expected a catalogue in data\.items"):
        retire = config.with_settings({"update.retire": "missing", "data.items": []})
        update(retire, day, folder / "one", tmp_path / "two")
    with pytest.raises(InputError, match="found other settings of the section `model`"):
        update(config.with_settings({"model.scorers.network.hidden": 32}), day, folder / "one", tmp_path / "three")
    with pytest.raises(InputError, match=r"found another run in .*base"):
        update(config, day, folder / "one", folder / "base")
    command = r"llmcfsr update \S+one/config.json --day"
    with pytest.raises(InputError, match=rf"goes on from the run of another day: run `{command}"):
        run_stages(config, folder / "one", ("prepare",))
    assert not Manifest.load(folder / "one" / "train").fault(folder / "one" / "train")
    copy = tmp_path / "copy"
    shutil.copytree(folder / "one", copy)
    (copy / "train" / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json was changed .*: run `llmcfsr update .*--from .*base"):
        Recommender.load(copy)
