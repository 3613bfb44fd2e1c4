"""train.report_to: every training is followed, by both Trainers and in embed.tune; files are local."""

import json
import os
import sys

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage
from llmcfsr_merlin.runtime import reporters
from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.runtime.reporters import Reporting
from llmcfsr_merlin.runtime.watch import Watch, require
from llmcfsr_merlin.training import train_stage
from llmcfsr_merlin.training.procedures import resolved
from tests.worlds import noise, write_ingest

TINY = ["train.epochs=2", "model.scorers.network.hidden=8", "model.scorers.network.heads=1", "train.average=0"]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    of_mlflow = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE")
    for name in (*of_mlflow, "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(reporters, "_ours", {})
    monkeypatch.setenv("WANDB_MODE", "offline")


def trained(run, *settings):
    config = Config.load(model="sasrec", overrides=["name=shop", "evaluate.baselines=[]", *TINY, *settings])
    if not (run / "prepare").exists():
        write_ingest(run, noise(60, 30, 6))
        prepare_stage.run(config, run)
    return train_stage.run(config, run)


def scalars(folder) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("procedure", ["transformers", "transformers4rec"])
def test_tensorboard_and_mlflow_get_the_training(tmp_path, procedure):
    pytest.importorskip("tensorboard")
    mlflow = pytest.importorskip("mlflow")
    if procedure == "transformers4rec" and resolved("auto") != procedure:
        pytest.skip("Transformers4Rec is not installed")
    run = tmp_path / "run"
    trained(run, f"train.procedure={procedure}", "train.report_to=[tensorboard, mlflow]")
    history = json.loads((run / "train" / "history.json").read_text())
    found = scalars(run / "logs" / "tensorboard" / "shop-train")
    assert found["eval/ndcg_at_10"] == pytest.approx([epoch["ndcg@10"] for epoch in history], abs=1e-5)
    assert len(found["train/loss"]) == 2
    client = mlflow.tracking.MlflowClient((run / "logs" / "mlruns").as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "shop"]
    (made,) = client.search_runs([experiment.experiment_id])
    assert made.info.run_name == "shop/train" and made.info.status == "FINISHED"
    assert made.data.metrics["eval_ndcg_at_10"] == pytest.approx(history[-1]["ndcg@10"], abs=1e-5)
    assert "learning_rate" in made.data.params
    assert mlflow.active_run() is None


def test_who_follows_does_not_change_what_is_trained(tmp_path):
    pytest.importorskip("tensorboard")
    first = trained(tmp_path / "run")
    again = trained(tmp_path / "run", "train.report_to=tensorboard")
    assert first == again and not (tmp_path / "run" / "logs").exists()  # nothing was trained


def test_a_loop_without_a_trainer(tmp_path):
    pytest.importorskip("tensorboard")
    reporting = Reporting(Watch(("tensorboard",), tmp_path, "shop/embed.tune"), tmp_path, learning_rate=0.1)
    reporting.log(10, loss=0.5)
    reporting.log(20, eval_retrieval=0.7)
    reporting.close()
    assert scalars(tmp_path / "tensorboard" / "shop-embed.tune") == {
        "train/loss": [0.5], "eval/retrieval": [pytest.approx(0.7)]
    }  # fmt: skip


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    trained(tmp_path / "run", "train.procedure=transformers", "train.report_to=wandb")
    assert list((tmp_path / "run" / "logs").glob("wandb/offline-run-*/*.wandb"))


def test_the_users_own_server_stays(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "theirs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    reporting = Reporting(Watch(("mlflow",), tmp_path / "logs", "shop/train"), tmp_path)
    reporting.close()
    assert (tmp_path / "theirs").is_dir() and not (tmp_path / "logs" / "mlruns").exists()
    assert os.environ["MLFLOW_TRACKING_URI"] == (tmp_path / "theirs").as_uri()


def test_a_missing_tool_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"train.report_to=wandb needs the package wandb: pip install wandb"):
        require(["wandb"])
