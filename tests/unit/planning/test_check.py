"""`llmcfsr check` names what would stop a run, warns of what would spoil it, and estimates the rest."""

import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import ingest_stage, prepare_stage
from llmcfsr_merlin.planning import checks, forecast
from llmcfsr_merlin.planning.checks import check_recipe
from llmcfsr_merlin.planning.log_facts import Log, facts_of, returns, sizes_of
from llmcfsr_merlin.planning.trials import Encoding, TrainingSpeed

DAY = 86_400


@pytest.fixture(autouse=True)
def _no_measurements(monkeypatch):
    """The trials have a test of their own."""
    monkeypatch.setattr(forecast, "time_encoding", lambda *_: Encoding(384, 0.01, 0.0))
    monkeypatch.setattr(forecast, "time_training", lambda *_: TrainingSpeed(0.1, 0.001))


def random_log(users=80, items=25, seed=0, whole_days=False) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(int(rng.integers(1, 14))):
            seconds = int(rng.integers(100)) * DAY if whole_days else int(rng.integers(100 * DAY))
            rows.append((f"u{user}", f"i{rng.integers(items)}", 1_500_000_000 + seconds))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


def recipe(tmp_path, log=None, items=None, **settings) -> Config:
    (random_log() if log is None else log).to_csv(tmp_path / "log.csv", index=False)
    chosen = {"data.interactions": [str(tmp_path / "log.csv")], "name": "shop"}
    if items is None:
        chosen |= {"evaluate.baselines": ["popularity"]}
        config = Config.load(model="sasrec")
    else:
        items.to_csv(tmp_path / "items.csv", index=False)
        chosen |= {"data.items": [str(tmp_path / "items.csv")], "evaluate.baselines": []}
        config = Config.load()
    return config.with_settings(chosen | {key.replace("__", "."): value for key, value in settings.items()})


def found(tmp_path, config, status) -> dict[str, str]:
    checked = check_recipe(config, tmp_path / "run")
    return {check.name: f"{check.found}: {check.action}" for check in checked.checks if check.status == status}


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
@pytest.mark.parametrize("whole_days", [False, True])
def test_the_sizes_are_those_of_stage_prepare(tmp_path, split, whole_days):
    config = recipe(tmp_path, random_log(whole_days=whole_days), prepare__split=split, prepare__max_length=5)
    ingest_stage.run(config, tmp_path / "run")
    counts = prepare_stage.run(config, tmp_path / "run").counts
    log = Log.read(tmp_path / "run/ingest/interactions")
    left, report = log.filtered(config.prepare)
    sizes, facts = sizes_of(left, config.prepare, log.cut(config.prepare)), facts_of(left)
    assert (facts.users, facts.items, facts.interactions) == tuple(
        counts[name] for name in ("users", "items", "interactions")
    )
    assert report["filter"] == counts["filter"] and sizes.tied_last == counts["tied_last_two"]
    assert sizes.rows["train"] == counts["train_rows"] and sizes.cut == counts["train_cut"] > 0
    for name in ("valid", "test"):
        rows = [len(pd.read_parquet(path)) for path in (tmp_path / "run/prepare" / name).glob("*.parquet")]
        assert sizes.rows[name] == sum(rows)


def test_a_return_is_at_a_later_time(tmp_path):
    rows = [("a", "x", 1), ("a", "x", 1), ("a", "y", 2), ("a", "x", 3), ("b", "x", 4)]
    config = recipe(tmp_path, pd.DataFrame([(u, i, 1_500_000_000 + t) for u, i, t in rows],
                                           columns=["user_id", "item_id", "timestamp"]))  # fmt: skip
    ingest_stage.run(config, tmp_path / "run")
    assert returns(Log.read(tmp_path / "run/ingest/interactions")).tolist() == [False, False, False, True, False]


def test_a_sound_recipe_passes_and_is_planned(tmp_path):
    checked = check_recipe(recipe(tmp_path), tmp_path / "run")
    assert checked.passed and not (tmp_path / "run").exists()
    stages = {stage.stage: stage for stage in checked.plan.stages}
    assert list(stages) == ["ingest", "prepare", "train", "evaluate", "export"]
    assert "sasrec: at most 40 epochs of" in stages["train"].does and stages["train"].seconds > 16 * 0.1
    assert checked.plan.memory > 100 << 20 and checked.plan.disk > 1000


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ({"data__columns": {"user": "customer"}}, "log", "expected a table with a field customer"),
        ({"data__interactions": ["nothing.csv"]}, "log", "found no 'nothing.csv'"),
        ({"prepare__min_item": 5000}, "log", "left none"),
        ({"prepare__split": "temporal", "prepare__test_from": "2031-01-01"}, "log", "prepare.split=temporal"),
        ({"train__device": "cuda"}, "device", "train.device"),
        ({"train__procedure": "unknown"}, "trainer", "train.procedure"),
    ],
)
def test_what_would_stop_a_run(tmp_path, settings, name, said):
    assert said in found(tmp_path, recipe(tmp_path, **settings), "error")[name]


def test_a_model_that_a_language_model_starts_needs_texts_and_the_language_model(tmp_path):
    starts = {"train__pretrain": "texts", "train__language_model": "./nowhere"}
    assert "expected a model folder at ./nowhere" in found(tmp_path, recipe(tmp_path, **starts), "error")["sasrec"]
    checked = check_recipe(recipe(tmp_path, **starts | {"train__language_model": "minilm"}), tmp_path / "run")
    assert [check.found for check in checked.checks if check.status == "error"] == [
        "it reads item texts, and data.items is empty"
    ]


def items_of(ids) -> pd.DataFrame:
    return pd.DataFrame({"item_id": list(ids), "title": [f"pot {name}" for name in ids]})


def test_texts_and_the_encoder(tmp_path):
    everything = [f"i{number}" for number in range(25)]
    assert not found(tmp_path, recipe(tmp_path, items=items_of(everything)), "error")
    assert "texts" in found(tmp_path, recipe(tmp_path, items=items_of(everything[:12])), "warn")
    assert "name items alike" in found(tmp_path, recipe(tmp_path, items=items_of(["x", "y"])), "error")["texts"]
    missing = recipe(tmp_path, items=items_of(everything), embed__model=str(tmp_path / "no-model"))
    assert "expected a model folder" in found(tmp_path, missing, "error")["encoder"]
    no_items = Config.load().with_settings({"data.interactions": [str(tmp_path / "log.csv")]})
    assert "data.items is empty" in found(tmp_path, no_items, "error")["encoder"]


def test_what_would_spoil_a_run(tmp_path):
    log = random_log(whole_days=True)
    log["timestamp"] = 1_500_000_000
    said = found(tmp_path, recipe(tmp_path, log, prepare__max_length=2), "warn")
    assert {"users", "max_length", "ties", "split", "duplicates"} <= said.keys()
    assert "cuts" in said["max_length"] and "prepare.ties=shuffle" in said["ties"]
    said = found(tmp_path, recipe(tmp_path, random_log(items=6), evaluate__exclude_history=True), "warn")
    assert "never recommends them" in said["history"]


def test_memory_and_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks, "available_memory", lambda: 100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 100))
    said = found(tmp_path, recipe(tmp_path), "error")
    assert "free are 100 MiB" in said["memory"] and "free some" in said["disk"]


def test_the_verb_prints_and_its_exit_code_says_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_log().to_csv("log.csv", index=False)
    (tmp_path / "shop.yaml").write_text("name: shop\ndata: {interactions: [log.csv]}\nevaluate: {baselines: []}\n")
    assert main(["check", "shop.yaml", "--model", "item_knn"]) == 0
    shown = capsys.readouterr().out
    assert "llmcfsr run shop.yaml can start" in shown and "estimated from" in shown
    assert main(["check", "shop.yaml", "--model", "item_knn", "--set", "data.columns.item=sku"]) == 1
    assert "would stop the run" in capsys.readouterr().out


def test_the_trials_measure_something(tmp_path, monkeypatch):
    from llmcfsr_merlin.planning import trials

    monkeypatch.setattr(forecast, "time_training", trials.time_training)
    small = {"model__scorers__network__hidden": 16, "model__scorers__network__heads": 2}
    plan = check_recipe(recipe(tmp_path, **small), tmp_path / "run").plan
    assert 0 < next(stage.seconds for stage in plan.stages if stage.stage == "train") < 3600
