"""A split in time from raw rows to results: nothing that is trained knows what happened after the cut."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.dataset import examples
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_vectors import vectors_column
from llmcfsr_merlin.dataset.names import ITEM, METRICS, MODEL_WEIGHTS, RANKS, SPLITS, TIME, USER
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation import evaluate_stage as evaluate
from llmcfsr_merlin.evaluation.measure import compare_runs
from llmcfsr_merlin.runtime.stage import run_stage
from llmcfsr_merlin.scoring.checkpoint import save_model
from llmcfsr_merlin.scoring.scorers.histories import training_matrix
from llmcfsr_merlin.text.diagnostics.vector_report import validation_pairs
from llmcfsr_merlin.text.tuning.reuse import training_neighbours
from llmcfsr_merlin.training import train_stage as train
from llmcfsr_merlin.training.fit import fit_model
from tests.worlds import attribute_world

START, DAY, VALID, TEST = 1_500_000_000, 86_400, 60, 80


def configured(*overrides: str) -> Config:
    return Config.load(None, [
        "name=small", "prepare.split=temporal", "prepare.filter=none", "prepare.max_length=10", "train.epochs=2",
        "train.batch_size=64", "train.negatives=64", "model.scorers.network.hidden=16",
        "model.scorers.transitions.neighbours=20", "evaluate.sampled_negatives=20",
        "evaluate.baselines=[popularity,item_knn,ease]", *overrides,
    ], "sasrec")  # fmt: skip


def cuts() -> list[str]:
    days = (pd.Timestamp(START + at * DAY, unit="s").floor("D").date() for at in (VALID, TEST))
    return [f"prepare.{name}={day}" for name, day in zip(("valid_from", "test_from"), days)]


def log() -> pd.DataFrame:
    """Of 300 users in 100 days, some of whom come late; `mid` is bought from validation on, `late` from test on."""
    random = np.random.default_rng(0)
    rows = []
    for user, items in attribute_world()[0].items():
        at = START + random.uniform(0, 80) * DAY
        for item in items:
            rows.append((user, item, int(at)))
            at += random.uniform(0, 10) * DAY
    for user in range(0, 300, 3):
        for item, day in (("mid", VALID + 1), ("mid", TEST + 1), ("late", TEST + 1), ("late", TEST + 9)):
            rows.append((f"u{user:04d}", item, START + int((day + random.uniform(0, 8)) * DAY)))
    return pd.DataFrame(rows, columns=[USER, ITEM, TIME])


def shuffled_from(frame: pd.DataFrame, config: Config, name: str) -> pd.DataFrame:
    """Another future: the same interactions of each item and of each user, but of others together."""
    later = frame[TIME] >= pd.Timestamp(getattr(config.prepare, name), tz="UTC").timestamp()
    items = frame[ITEM].to_numpy().copy()
    items[later] = np.random.default_rng(1).permutation(items[later])
    return frame.assign(**{ITEM: items})


def content(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*"))]


def test_another_test_period_trains_the_same_model(tmp_path):
    """Sequences and test rows differ, nothing else: counts, rows, weights, also those that validation chose."""
    config = configured(*cuts())
    for name, frame in (("a", log()), ("b", shuffled_from(log(), config, "test_from"))):
        Dataset.from_frames(frame, config=config, run=tmp_path / name)
        train.run(config, tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    for same in ("train", "valid"):
        assert content(a / "prepare" / same) == content(b / "prepare" / same)
    assert content(a / "prepare" / "test") != content(b / "prepare" / "test")
    assert (a / "prepare" / "vocabulary.parquet").read_bytes() == (b / "prepare" / "vocabulary.parquet").read_bytes()
    assert (a / "train" / MODEL_WEIGHTS).read_bytes() == (b / "train" / MODEL_WEIGHTS).read_bytes()
    assert (a / "train" / "model.json").read_bytes() == (b / "train" / "model.json").read_bytes()


@pytest.fixture(scope="module")
def two_futures(tmp_path_factory):
    """Runs whose logs differ after test_from alone, with the same vectors."""
    config, runs = configured(*cuts()), []
    for frame in (log(), shuffled_from(log(), config, "test_from")):
        run = tmp_path_factory.mktemp("future")
        Dataset.from_frames(frame, config=config, run=run)

        def work(out, run=run):
            ids = Vocabulary.load(run / "prepare" / "vocabulary.parquet").ids.tolist()
            for seed, (name, dimension) in enumerate({"vectors": 24, "lexical": 12}.items()):
                drawn = np.random.default_rng(seed).normal(size=(len(ids), dimension)).astype(np.float32)
                (out / name).mkdir()
                table = pa.table({ITEM: ids, "vector": vectors_column(drawn), "has_text": [True] * len(ids)})
                pq.write_table(table, out / name / "part-00000.parquet")
            return {"items": len(ids)}

        run_stage(run, "embed", {}, ["prepare"], work)
        runs.append(run)
    return runs


LANGUAGE = ("said", "tslrec")  # what their language model reads: tests/unit/text/test_language_pretraining.py
FAST = ("popularity", "item_knn", "ease", "llm_cfsr")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in presets() if name not in LANGUAGE],
)
def test_no_model_is_fitted_on_what_comes_after_the_cut(name, two_futures, tmp_path):
    """All that is stored of a model (tables, counts, transitions, score weights) is the same for both futures."""
    config = Config.load(None, [
        "prepare.max_length=10", "train.epochs=1", "train.negatives=64", "train.device=cpu", "train.align_to=null",
    ], name)  # fmt: skip
    stored = []
    for number, run in enumerate(two_futures):
        dataset, folder = Dataset.load(run), tmp_path / str(number)
        model, _ = fit_model(config.model, config.train, dataset, tmp_path / f"work-{number}", tail_item=4)
        folder.mkdir()
        save_model(model, folder, "the same")
        stored.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert stored[0] and stored[0] == stored[1]


def test_a_later_item_is_in_no_training_artefact(tmp_path):
    config = configured(*cuts())
    dataset = Dataset.from_frames(log(), config=config, run=tmp_path)
    train.run(config, tmp_path)
    mid, late = dataset.vocabulary.encode(["mid", "late"])
    assert dataset.vocabulary.counts[late] > 50 and dataset.train_counts[[mid, late]].tolist() == [0, 0]
    found = {split: pq.read_table(dataset.prepared / split)[ITEM].combine_chunks().flatten() for split in SPLITS}
    held = {split: {mid, late} & set(values.to_pylist()) for split, values in found.items()}
    assert held == {"train": set(), "valid": {mid}, "test": {mid, late}}
    assert training_matrix(dataset)[:, [mid, late]].nnz == 0
    assert not {mid, late} & {code for block in dataset.sequences() for row in block for code in row.tolist()}
    codes = np.arange(3, len(dataset.vocabulary))
    neighbours = training_neighbours(dataset.prepared / "sequences", codes, len(codes))
    assert not np.isin(neighbours.items, [mid - 3, late - 3]).any()
    assert np.diff(neighbours.starts)[[mid - 3, late - 3]].tolist() == [0, 0]
    assert late - 3 not in np.concatenate(validation_pairs(dataset.prepared / "sequences"))
    weights = load_file(tmp_path / "train" / MODEL_WEIGHTS)
    (items,) = (values for name, values in weights.items() if name.endswith("next_items"))
    (worth,) = (values for name, values in weights.items() if name.endswith("next_weights"))
    assert not np.isin(items[worth > 0], [mid, late]).any() and not worth[[mid, late]].any()


@pytest.mark.parametrize("targets", ["last", "first", "all"])
def test_evaluated_by_cases(tmp_path, targets):
    """Every model on the same cases; cold targets are a group; users, not cases, are what is tested on."""
    config = configured(*cuts(), f"prepare.targets={targets}", "train.epochs=1")
    dataset = Dataset.from_frames(log(), config=config, run=tmp_path)
    train.run(config, tmp_path)
    evaluate.run(config, tmp_path)
    split = json.loads((tmp_path / "prepare" / "manifest.json").read_text())["counts"]["split"]["test"]
    metrics = json.loads((tmp_path / "evaluate" / METRICS).read_text())
    count = {(row["recipe"], row["group"]): row["count"] for row in metrics if row["metric"] == "hr@10"}
    for model in ("sasrec", "popularity", "item_knn", "ease"):
        assert count[model, "overall"] == split["rows"] and count[model, "cold_item"] == split["cold_targets"] > 0
    assert (split["rows"] > split["users"] - split["cold_users"]) == (targets == "all")
    ranks = tmp_path / "evaluate" / RANKS
    found = compare_runs(ranks, "sasrec", ranks, "popularity", dataset.prepared, config.evaluate)
    overall = next(row for row in found if row["group"] == "overall")
    assert overall["count"] == split["users"] - split["cold_users"]
    for user, sequence in examples.pick(tmp_path, 5).items():
        asked = pd.read_parquet(dataset.prepared / "test").groupby(USER)[ITEM].last()[user]
        assert list(dataset.vocabulary.encode(sequence[-11:])) == list(asked)
