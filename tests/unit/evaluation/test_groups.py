"""Groups against a pandas reference."""

import numpy as np
import pandas as pd
import pytest

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.evaluation.groups import (
    DECILES,
    catalogue_metrics,
    group_masks,
    group_metrics,
    popularity_deciles,
    user_counts,
)
from tests.unit.evaluation.prepared import random_sequences, write_prepare


@pytest.fixture
def ranks():
    generator = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "user_id": [f"u{number}" for number in range(400)],
            "target": generator.integers(FIRST_ITEM, 63, 400),
            "history_length": generator.integers(2, 15, 400),
            "rank_full": generator.integers(1, 60, 400),
            "rank_sampled": generator.integers(1, 30, 400),
        }
    )


@pytest.fixture
def train_counts():
    return np.concatenate([np.zeros(FIRST_ITEM, np.int64), np.random.default_rng(4).poisson(1.5, 60) ** 2])


def test_masks_and_metrics_equal_pandas(ranks, train_counts):
    masks = group_masks(ranks, train_counts, train_counts, tail_item=4, tail_user=6)
    rows = group_metrics(ranks, masks, (5, 10), dataset="d", recipe="r", seed=1)
    found = {(row["protocol"], row["group"], row["metric"]): row for row in rows}
    frame = ranks.assign(popularity=train_counts[ranks["target"]])
    selections = {
        "overall": frame,
        "tail_item": frame.query("popularity < 4"),
        "head_item": frame.query("popularity >= 4"),
        "tail_user": frame.query("history_length < 6"),
        "head_user": frame.query("history_length >= 6"),
        "cold_item": frame.query("popularity == 0"),
    }
    for group, part in selections.items():
        for protocol in ("full", "sampled"):
            rank = part[f"rank_{protocol}"]
            row = found[protocol, group, "ndcg@10"]
            assert row["count"] == len(part) > 0
            assert row["value"] == pytest.approx((np.log(2) / np.log(rank + 1)).where(rank <= 10, 0).mean())
            assert found[protocol, group, "hr@5"]["value"] == pytest.approx((rank <= 5).mean())
    assert set(rows[0]) == {"dataset", "recipe", "seed", "protocol", "group", "metric", "value", "count"}


def test_groups_partition_the_users(ranks, train_counts):
    masks = group_masks(ranks, train_counts, train_counts, tail_item=4, tail_user=6)
    for names in (("tail_item", "head_item"), ("tail_user", "head_user"), DECILES):
        assert (sum(masks[name].astype(int) for name in names) == 1).all()
    assert not (masks["cold_item"] & masks["head_item"]).any()


def test_deciles_are_tenths_where_counts_differ_and_never_split_a_count():
    assert np.bincount(popularity_deciles(np.random.default_rng(0).permutation(100)))[1:].tolist() == [10] * 10
    counts = np.random.default_rng(0).poisson(2, 500)
    assert pd.Series(popularity_deciles(counts)).groupby(counts).nunique().max() == 1
    assert pd.Series(popularity_deciles(counts)).groupby(counts).first().is_monotonic_increasing


def test_thresholds_are_strict(ranks, train_counts):
    ranks["history_length"] = 6
    masks = group_masks(ranks, np.full(63, 4), train_counts, tail_item=4, tail_user=6)
    assert not masks["tail_item"].any() and not masks["tail_user"].any()


def test_empty_groups_are_left_out(ranks, train_counts):
    masks = {"overall": np.ones(400, bool), "nobody": np.zeros(400, bool)}
    rows = group_metrics(ranks, masks, (10,), dataset="d", recipe="r", seed=1)
    assert {row["group"] for row in rows} == {"overall"}


def test_user_counts_count_a_user_once_and_the_test_item(tmp_path):
    write_prepare(tmp_path, {"a": [3, 3, 4], "b": [3, 5, 6]}, 8)
    assert user_counts(tmp_path, 8).tolist() == [0, 0, 0, 2, 1, 1, 1, 0]
    sequences = random_sequences(50, 40)
    write_prepare(tmp_path / "b", sequences, 40)
    expected = pd.Series(sequences).map(set).explode().value_counts()
    assert user_counts(tmp_path / "b", 40).sum() == expected.sum()


def test_catalogue_metrics_have_the_same_columns():
    rows = catalogue_metrics({"coverage@10": 0.5}, 7, dataset="d", recipe="r", seed=1)
    assert rows == [
        {
            "dataset": "d",
            "recipe": "r",
            "seed": 1,
            "protocol": "full",
            "group": "overall",
            "metric": "coverage@10",
            "value": 0.5,
            "count": 7,
        }
    ]
