"""The stage's work end to end on a hand-written prepare directory: files, rows, determinism, comparison."""

import json

import pandas as pd
import pytest

from llmcfsr_merlin.config.evaluate_settings import EvaluateConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import CASES, METRICS, RANKS
from llmcfsr_merlin.evaluation.measure import compare_runs, measure
from llmcfsr_merlin.evaluation.ranks import read_ranks
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.evaluation.prepared import fitted, random_sequences, write_prepare

SETTINGS = EvaluateConfig(sampled_negatives=30, tail_item=10, tail_user=5)


def run(directory, prepare, names=("popularity", "ease"), settings=SETTINGS):
    directory.mkdir()
    models = {name: lambda name=name: fitted(name, prepare, 4) for name in names}
    return measure(directory, Dataset(prepare, max_length=4), models, name="toy", seed=7, settings=settings)


@pytest.fixture
def prepare(tmp_path):
    write_prepare(tmp_path / "prepare", random_sequences(120, 90), 90, parts=3)
    return tmp_path / "prepare"


def test_files_and_rows(tmp_path, prepare):
    metrics = run(tmp_path / "out", prepare)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([CASES, RANKS, METRICS])
    assert json.loads((tmp_path / "out" / METRICS).read_text()) == metrics
    assert {row["recipe"] for row in metrics} == {"popularity", "ease"} and {row["seed"] for row in metrics} == {7}
    assert {row["protocol"] for row in metrics} == {"full", "sampled"}
    assert {(row["history"], row["weights"]) for row in metrics} == {("masked", "masked"), ("kept", "kept")}
    assert {"last_pair_ascending", "last_pair_descending"} < {row["group"] for row in metrics}
    ranks = read_ranks(tmp_path / "out" / RANKS, "ease")
    for rule in ("masked", "kept"):
        wanted = ("ease", "full", rule, "hr@10")
        overall = next(r for r in metrics if (r["recipe"], r["protocol"], r["history"], r["metric"]) == wanted)
        assert overall["value"] == pytest.approx((ranks[f"rank_full_{rule}"] <= 10).mean()) and overall["count"] == 120


def test_two_runs_are_equal(tmp_path, prepare):
    assert run(tmp_path / "a", prepare) == run(tmp_path / "b", prepare)
    pd.testing.assert_frame_equal(read_ranks(tmp_path / "a" / RANKS), read_ranks(tmp_path / "b" / RANKS))
    assert (tmp_path / "a" / CASES).read_bytes() == (tmp_path / "b" / CASES).read_bytes()


def test_a_recipe_ranks_the_same_alone_and_in_company(tmp_path, prepare):
    run(tmp_path / "a", prepare)
    run(tmp_path / "b", prepare, names=("item_knn", "ease"))
    one, other = (read_ranks(tmp_path / name / RANKS, "ease") for name in "ab")
    pd.testing.assert_frame_equal(one, other)


def test_full_protocol_alone_needs_no_candidates(tmp_path, prepare):
    settings = EvaluateConfig(protocols=("full",), sampled_negatives=10_000)
    assert {row["protocol"] for row in run(tmp_path / "out", prepare, settings=settings)} == {"full"}


def test_comparison_of_runs(tmp_path, prepare):
    run(tmp_path / "a", prepare)
    run(tmp_path / "b", prepare, names=("popularity",))
    rows = compare_runs(tmp_path / "a" / RANKS, "ease", tmp_path / "b" / RANKS, "popularity", prepare, SETTINGS)
    assert {row["group"] for row in rows} >= {"overall", "tail_item", "head_user"}
    with pytest.raises(InputError, match=r"expected ranks of recipe 'gru4rec', found ease, popularity"):
        compare_runs(tmp_path / "a" / RANKS, "gru4rec", tmp_path / "b" / RANKS, "popularity", prepare, SETTINGS)


def test_popularity_from_all_counts_test_clicks(tmp_path, prepare):
    train = run(tmp_path / "a", prepare)
    everything = run(tmp_path / "b", prepare, settings=SETTINGS.model_copy(update={"popularity_from": "all"}))

    def tail(rows):
        return next(row["count"] for row in rows if row["group"] == "tail_item")

    assert tail(everything) < tail(train)
