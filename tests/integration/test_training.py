"""Training for real, on small worlds: learns what is there, nothing on noise, resumes, and evaluates as it predicts."""

import importlib.util
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.dataset import prepare_stage as prepare
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_vectors import vectors_column
from llmcfsr_merlin.dataset.names import SEQUENCES
from llmcfsr_merlin.dataset.user_histories import read_sequences
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation import evaluate_stage as evaluate
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.stage import run_stage, write_json
from llmcfsr_merlin.scoring.ranker import pad
from llmcfsr_merlin.training import fit as training
from llmcfsr_merlin.training import train_stage as train
from llmcfsr_merlin.training.batches import Batches
from tests.tiny_models import write_llama
from tests.worlds import attribute_world, noise, write_ingest

SMALL = ["train.negatives=64", "train.batch_size=64", "prepare.max_length=10"]
T4REC = pytest.mark.skipif(not importlib.util.find_spec("transformers4rec"), reason="needs Transformers4Rec")
HIDDEN = "model.scorers.network.hidden=16"
LANGUAGE = ("said", "tslrec")


def configured(*overrides: str) -> Config:
    return Config.load(None, ["name=small", *SMALL, HIDDEN, "evaluate.baselines=[]", *overrides], "sasrec")


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    run = tmp_path_factory.mktemp("learnable")
    write_ingest(run, *attribute_world())
    prepare.run(configured(), run)
    return run


def copy_of(run, tmp_path):
    for stage in ("ingest", "prepare"):
        shutil.copytree(run / stage, tmp_path / stage)
    return tmp_path


def test_noise_scores_at_chance(tmp_path):
    """A leak of the label would show here as quality where there can be none."""
    write_ingest(tmp_path, noise())
    config = configured("train.epochs=4", "evaluate.sampled_negatives=50", "model.scorers.transitions.neighbours=50")
    prepare.run(config, tmp_path)
    manifest = train.run(config, tmp_path)
    evaluate.run(config, tmp_path)
    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    users, items = 400, 200
    for protocol, chance in (("full", 10 / items), ("sampled", 10 / 51)):
        (found,) = [
            row["value"]
            for row in metrics
            if (row["protocol"], row["history"], row["group"], row["metric"]) == (protocol, "kept", "overall", "hr@10")
        ]
        assert abs(found - chance) < 3.5 * (chance * (1 - chance) / users) ** 0.5, protocol
    assert manifest.counts["validation ndcg@10"] < 0.06


@pytest.fixture(scope="module")
def noise_with_vectors(tmp_path_factory):
    """Noise again, and random vectors as the finished stage embed."""
    run = tmp_path_factory.mktemp("noise")
    sequences, digits = noise(), np.random.default_rng(2)
    ids = {item for sequence in sequences.values() for item in sequence}
    write_ingest(run, sequences, {item: {"title": f"red soap {digits.integers(1000)}"} for item in sorted(ids)})
    prepare.run(configured(), run)

    def work(out):
        ids = Vocabulary.load(run / "prepare" / "vocabulary.parquet").ids.tolist()
        for seed, (name, dimension) in enumerate({"vectors": 24, "lexical": 12}.items()):
            drawn = np.random.default_rng(seed).normal(size=(len(ids), dimension)).astype(np.float32)
            (out / name).mkdir()
            table = pa.table({"item_id": ids, "vector": vectors_column(drawn), "has_text": [True] * len(ids)})
            pq.write_table(table, out / name / "part-00000.parquet")
        return {"items": len(ids)}

    run_stage(run, "embed", {}, ["prepare"], work)
    return run


@pytest.mark.parametrize("name", presets())
def test_no_model_finds_anything_in_noise(name, noise_with_vectors, tmp_path):
    """Leak test of every recipe: the loss and the metric see the same future, a leak would show in either."""
    overrides = [*SMALL, "train.epochs=3", "evaluate.sampled_negatives=50", "evaluate.baselines=[]"]
    if Config.load(None, model=name).model.network:
        overrides.append(HIDDEN)
    if name in LANGUAGE:
        pytest.importorskip("peft")
        overrides += [f"train.language_model={write_llama(tmp_path / 'model')}", "train.language_steps=30"]
    config = Config.load(None, ["name=noise", *overrides], name)
    manifest = train.run(config, noise_with_vectors)
    evaluate.run(config, noise_with_vectors)
    metrics = json.loads((noise_with_vectors / "evaluate" / "metrics.json").read_text())
    for protocol, chance in (("full", 10 / 200), ("sampled", 10 / 51)):
        (found,) = [
            row["value"]
            for row in metrics
            if (row["protocol"], row["history"], row["group"], row["metric"]) == (protocol, "kept", "overall", "hr@10")
        ]
        assert abs(found - chance) < 3.5 * (chance * (1 - chance) / 400) ** 0.5, protocol
    assert manifest.counts["model"] == name
    described = json.loads((noise_with_vectors / "train" / "model.json").read_text())
    assert described["shape"]["lexical"] == (12 if "lexical" in config.model.reads else None)
    assert list(described["model"]["scorers"]) == list(config.model.scorers)


def test_a_part_of_the_users_is_enough_to_choose_epochs(learnable, tmp_path):
    """Every tenth row of the split, over its parts, in its order."""
    rows = pq.read_table(learnable / "prepare" / "valid", columns=["item_id"])
    prepared = tmp_path / "prepare"
    (prepared / "valid").mkdir(parents=True)
    for part, (start, count) in enumerate([(0, 7), (7, 100), (107, len(rows))]):
        pq.write_table(rows.slice(start, count), prepared / "valid" / f"part-{part}.parquet")
    count = len(rows) // 10
    some = configured(f"train.validation_users={count}").train
    (sample,) = training.validation_sample(Dataset(prepared), tmp_path, some)
    found = pq.read_table(sample)["item_id"].to_pylist()
    assert found == rows["item_id"].to_pylist()[::10][:count]
    everyone = configured(f"train.validation_users={len(rows)}").train
    assert training.validation_sample(Dataset(prepared), tmp_path, everyone) == Dataset(prepared).files("valid")


@pytest.mark.parametrize(("exclude", "average"), [(False, 0), (True, 0), (True, 0.5)])
@pytest.mark.parametrize("procedure", [pytest.param("transformers4rec", marks=T4REC), "transformers"])
def test_what_can_be_learned_is_learned_and_validation_equals_prediction(
    learnable, tmp_path, procedure, exclude, average
):
    run = copy_of(learnable, tmp_path)
    settings = ["train.epochs=12", "train.learning_rate=0.01", f"train.procedure={procedure}"]
    settings += [f"train.average={average}"]
    config = configured(*settings, f"evaluate.exclude_history={exclude}")
    best = train.run(config, run).counts["validation ndcg@10"]
    history = json.loads((run / "train" / "history.json").read_text())
    assert history[-1]["loss"] < history[0]["loss"]
    assert best == pytest.approx(max(epoch["ndcg@10"] for epoch in history), abs=1e-5)
    assert best > 3 * 10 / 120 * 0.45  # NDCG@10 of a random order is about 0.45 * 10 / items
    # The trainer's figure is the one that recommend() gives on the same histories.
    recommender = Recommender.load(run)
    gains, users = 0.0, 0
    for _, sequences in read_sequences(run / "prepare"):
        histories = pad([sequence[:-2].tolist() for sequence in sequences], 10)
        targets = torch.tensor([sequence[-2] for sequence in sequences])
        scores = recommender.ranker.scores(histories)
        if exclude:
            scores = scores.scatter(1, histories, -torch.inf)
        of_target = scores.gather(1, targets[:, None])
        ranks = (scores > of_target).sum(1).double()
        gains += float(((ranks < 10) / torch.log2(ranks + 2)).sum())
        users += len(sequences)
    assert gains / users == pytest.approx(best, abs=1e-4)


@T4REC
def test_both_trainers_do_the_same_steps(learnable, tmp_path, monkeypatch):
    """Of the same batches, and of their own, whose order differs: as alike as two seeds are."""
    from llmcfsr_merlin.training import t4rec_trainer

    def from_memory(files, schema, batch_size, shuffle, device, seed=0):
        return t4rec_trainer.Pairs(Batches(files, batch_size, device, shuffle=shuffle, seed=seed))

    found = {}
    for label, procedure in {"plain": "transformers", "own": "transformers4rec", "same": "transformers4rec"}.items():
        if label == "same":
            monkeypatch.setattr(t4rec_trainer, "data_loader", from_memory)
        run = copy_of(learnable, tmp_path / label)
        config = configured("train.epochs=12", "train.learning_rate=0.01", f"train.procedure={procedure}")
        train.run(config, run)
        history = json.loads((run / "train" / "history.json").read_text())
        found[label] = [[epoch[name] for epoch in history] for name in ("epoch", "loss", "ndcg@10", "hr@10")]
    assert np.array(found["same"]) == pytest.approx(np.array(found["plain"]), rel=1e-9)
    (epochs, losses, gains, _), (others, their_losses, their_gains, _) = found["plain"], found["own"]
    assert epochs == others
    assert losses == pytest.approx(their_losses, rel=0.1)
    assert max(gains) == pytest.approx(max(their_gains), rel=0.15)


@pytest.mark.parametrize("procedure", [pytest.param("transformers4rec", marks=T4REC), "transformers"])
def test_prefixes_teach_a_block_that_has_one_state_a_history(learnable, tmp_path, procedure):
    run = copy_of(learnable, tmp_path)
    settings = ["train.epochs=4", "train.learning_rate=0.005", f"train.procedure={procedure}", "train.patience=4"]
    config = Config.load(None, [*SMALL, HIDDEN, "model.scorers.network.dropout=0.1", *settings], "bsarec")
    assert train.run(config, run).counts["validation ndcg@10"] > 3 * 10 / 120 * 0.45


@pytest.mark.parametrize("procedure", ["transformers", "transformers4rec"])
def test_a_training_in_bfloat16_leaves_the_next_ones_in_float32(learnable, tmp_path, procedure):
    found = []
    for number, precision in enumerate(("float32", "bfloat16", "float32")):
        run = copy_of(learnable, tmp_path / str(number))
        config = configured("train.epochs=2", f"train.precision={precision}", f"train.procedure={procedure}")
        train.run(config, run)
        found.append((run / "train" / "model.safetensors").read_bytes())
    assert found[0] == found[2] != found[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_learns_what_the_cpu_learns(learnable, tmp_path, precision):
    """Whether Merlin makes the batches on the GPU or, without its cudf, on the CPU."""
    found = {}
    for device in ("cpu", "cuda"):
        run = copy_of(learnable, tmp_path / device)
        settings = ["train.epochs=12", "train.learning_rate=0.01", f"train.precision={precision}"]
        config = configured(*settings, f"train.device={device}", "model.scorers.transitions.neighbours=20")
        found[device] = train.run(config, run).counts["validation ndcg@10"]
        Recommender.load(run)
    assert found["cuda"] > 3 * 10 / 120 * 0.45
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.25)


def test_one_negative_stopped_early_says_that_it_may_only_have_rested(learnable, tmp_path, capsys):
    slow = ["train.patience=1", "train.epochs=9", "train.learning_rate=1e-9", "train.schedule=constant"]
    for loss, said in (("bce", True), ("full_softmax", False)):
        run = copy_of(learnable, tmp_path / loss)
        train.run(configured(*slow, f"train.loss={loss}"), run)
        captured = capsys.readouterr()
        assert ("raise train.patience" in captured.out + captured.err) == said


def test_the_test_item_is_not_read_before_evaluation(learnable, tmp_path):
    """Training and selection give the same weights whatever the last item of each user is."""
    config = configured("train.epochs=2", "model.scorers.transitions.neighbours=20")
    weights = []
    for name in ("as_is", "changed"):
        (tmp_path / name).mkdir()
        run = copy_of(learnable, tmp_path / name)
        if name == "changed":
            shutil.rmtree(run / "prepare" / "test")
            shutil.rmtree(run / "prepare" / SEQUENCES)
        train.run(config, run)
        weights.append((run / "train" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


KILLED = {
    "plain": [],
    "averaged": ["train.average=1"],
    "in two parts": [
        "model.scorers.network.tail_maps=true", "train.pretrain=plain", "train.enhance_users=0.1",
        "train.enhance_items=0.4",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_training_goes_on_to_the_same_weights(kind, learnable, tmp_path, monkeypatch):
    config = configured("train.epochs=4", *KILLED[kind])
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        copy_of(learnable, tmp_path / name)
    train.run(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    left = [Killed] if config.train.pretrain is None else [Killed, None]  # in the second part

    def dies(line):
        if line.startswith("epoch 3/") and (killed := left.pop()):
            raise killed

    original = training.fit_model
    monkeypatch.setattr(train, "fit_model", lambda *a, **k: original(*a, **{**k, "report": dies}))
    with pytest.raises(Killed):
        train.run(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "train").exists(), "nothing half-written"
    lines = []
    monkeypatch.setattr(train, "fit_model", lambda *a, **k: original(*a, **{**k, "report": lines.append}))
    train.run(config, tmp_path / "killed")
    assert lines[0].startswith("epoch 3/"), lines
    read = [Recommender.load(tmp_path / name).ranker.model.state_dict() for name in ("whole", "killed")]
    for name, weight in read[0].items():
        torch.testing.assert_close(read[1][name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_a_finished_stage_is_skipped_and_a_changed_setting_runs_it(learnable, tmp_path):
    run = copy_of(learnable, tmp_path)
    first = train.run(configured("train.epochs=1"), run)
    stamp = (run / "train" / "manifest.json").stat().st_mtime_ns
    assert train.run(configured("train.epochs=1", "train.device=cpu"), run).key == first.key
    assert (run / "train" / "manifest.json").stat().st_mtime_ns == stamp
    assert train.run(configured("train.epochs=2"), run).key != first.key


def test_a_changed_input_is_refused(learnable, tmp_path):
    run = copy_of(learnable, tmp_path)
    part = next((run / "prepare" / "train").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed after it was written"):
        train.run(configured("train.epochs=1"), run)
    assert not (run / "train").exists()


def test_every_neural_baseline_is_trained_and_measured_on_the_same_cases(learnable, tmp_path):
    run = copy_of(learnable, tmp_path)
    overrides = ["train.epochs=1", "evaluate.baselines=[popularity, sasrec]", "model.name=mine"]
    config = configured(*overrides, "evaluate.sampled_negatives=20")
    train.run(config, run)
    evaluate.run(config, run)
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert {row["recipe"] for row in metrics} == {"mine", "sasrec", "popularity"}
    counts = {row["count"] for row in metrics if row["group"] == "overall"}
    assert counts == {300}


def test_a_stage_without_its_input_says_which_to_run(tmp_path):
    for stage, wanted in ((train, "prepare"), (evaluate, "prepare"), (prepare, "ingest")):
        with pytest.raises(ValueError, match=f"run `llmcfsr {wanted}` first"):
            stage.run(configured(), tmp_path)
    write_json(tmp_path / "x.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json"], "nothing half-written"


def test_seeds_differ_and_one_seed_repeats(learnable, tmp_path):
    found = []
    for place, seed in enumerate((1, 1, 2)):
        (tmp_path / str(place)).mkdir()
        run = copy_of(learnable, tmp_path / str(place))
        train.run(configured("train.epochs=1", f"train.seed={seed}"), run)
        found.append(Recommender.load(run).ranker.model.scorers["network"].catalogue.numpy())
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
