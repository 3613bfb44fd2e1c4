"""Groups against a pandas reference."""

import numpy as np
import pandas as pd
import pytest

from llmcfsr_merlin.dataset.catalogue_order import catalogue_order
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.evaluation.groups import (
    DECILES,
    catalogue_metrics,
    group_masks,
    group_metrics,
    popularity_deciles,
    user_counts,
    with_history,
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
            "last": generator.integers(FIRST_ITEM, 63, 400),
            "rank_full_masked": generator.integers(1, 50, 400),
            "rank_full_kept": generator.integers(1, 60, 400),
            "rank_sampled_kept": generator.integers(1, 30, 400),
        }
    )


@pytest.fixture
def train_counts():
    return np.concatenate([np.zeros(FIRST_ITEM, np.int64), np.random.default_rng(4).poisson(1.5, 60) ** 2])


def test_masks_and_metrics_equal_pandas(ranks, train_counts):
    masks = group_masks(ranks, train_counts, train_counts, tail_item=4, tail_user=6)
    rows = group_metrics(ranks, masks, (5, 10), dataset="d", recipe="r", seed=1)
    found = {(row["protocol"], row["history"], row["group"], row["metric"]): row for row in rows}
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
        for of in (("full", "masked"), ("full", "kept"), ("sampled", "kept")):
            rank = part["rank_{}_{}".format(*of)]
            row = found[(*of, group, "ndcg@10")]
            assert row["count"] == len(part) > 0
            assert row["value"] == pytest.approx((np.log(2) / np.log(rank + 1)).where(rank <= 10, 0).mean())
            assert found[(*of, group, "hr@5")]["value"] == pytest.approx((rank <= 5).mean())
    assert list(rows[0]) == [
        "dataset", "recipe", "seed", "protocol", "history", "weights", "group", "metric", "value", "count"
    ]  # fmt: skip
    assert all(row["weights"] == row["history"] for row in rows)


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
    weights = {"masked": "masked", "kept": "masked"}
    found = {"masked": {"coverage@10": 0.5}, "kept": {"coverage@10": 0.4}}
    rows = catalogue_metrics(found, 7, dataset="d", recipe="r", seed=1, weights=weights)
    about = {"dataset": "d", "recipe": "r", "seed": 1, "protocol": "full", "group": "overall", "metric": "coverage@10"}
    assert rows == [
        {**about, "history": "masked", "weights": "masked", "value": 0.5, "count": 7},
        {**about, "history": "kept", "weights": "masked", "value": 0.4, "count": 7},
    ]


def test_rows_of_an_earlier_version_get_the_rule_that_they_were_made_by():
    new = {"metric": "mrr", "history": "kept", "weights": "masked"}
    old = with_history([{"metric": "mrr"}, new], "masked")
    assert old == [{"metric": "mrr", "history": "masked", "weights": "masked"}, new]


def test_last_pairs_by_the_order_of_raw_ids(ranks, train_counts):
    ranks = ranks.iloc[:4].assign(last=[3, 4, 5, 3], target=[4, 3, 5, 5])
    numbers, texts = (["9", "10", "11"], [True, False, False, True]), (["9", "10", "x"], [False, True, False, True])
    for ids, ascending in (numbers, texts):
        order = np.r_[0, 0, 0, catalogue_order(ids)]
        counts = train_counts[:6]
        masks = group_masks(ranks, counts, counts, tail_item=4, tail_user=6, order=order)
        assert masks["last_pair_ascending"].tolist() == ascending
        assert masks["last_pair_descending"].tolist() == [not up and i != 2 for i, up in enumerate(ascending)]
    assert "last_pair_ascending" not in group_masks(ranks, counts, counts, tail_item=4, tail_user=6)
