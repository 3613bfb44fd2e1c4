"""Ranks of a scorer: both protocols, batching, excluded history, memory."""

import gc
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from llmcfsr_merlin.dataset.names import FIRST_ITEM, USER
from llmcfsr_merlin.evaluation import ranks as ranks_module
from llmcfsr_merlin.evaluation.cases import write_cases
from llmcfsr_merlin.evaluation.groups import LENGTHS, group_masks
from llmcfsr_merlin.evaluation.ranks import LAST, RECIPE, SEED, TARGET, rank_users, read_ranks, write_ranks
from tests.unit.evaluation.prepared import random_sequences, write_prepare


def linear_scorer(rows, seed=0):
    """Rows of a random table summed over the history: another score for each (history, item)."""
    table = torch.randn(rows, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table[0] = 0

    def score(histories):
        scores = table[histories].sum(1)
        scores[:, :FIRST_ITEM] = -torch.inf
        return scores

    return score


def prepared(directory, users=53, rows=120, negatives=20):
    train = write_prepare(directory, random_sequences(users, rows), rows)
    write_cases(directory, directory / "cases.parquet", rows, negatives=negatives)
    return directory / "cases.parquet", train


def test_by_hand(tmp_path):
    # Five items, codes 3..7. History [3, 4], target 5; scores put 3 and 7 above it.
    train = write_prepare(tmp_path, {"a": [3, 4, 5]}, 8, parts=1)
    write_cases(tmp_path, tmp_path / "cases.parquet", 8, negatives=2)
    scores = torch.tensor([[9.0, 9, 9, 0.9, 0.1, 0.5, 0.2, 0.8]])  # reserved rows must not count, whatever they score
    settings = {"train_counts": train, "max_length": 5, "ks": (1, 2)}
    found = rank_users(lambda _: scores, tmp_path / "cases.parquet", **settings)
    assert found.ranks[["rank_full_kept", "rank_full_masked", TARGET, LAST, "history_length"]].values.tolist() == [
        [3, 2, 5, 4, 2]
    ]
    assert found.ranks[["rank_sampled_kept", "rank_sampled_masked"]].values.tolist() == [[2, 2]]
    assert found.catalogue["kept"]["coverage@2"] == found.catalogue["masked"]["coverage@2"] == 2 / 5
    # Recommended: 3 and 7, of which 3 was trained on, or 7 and 5.
    assert (found.catalogue["kept"]["arp@2"], found.catalogue["masked"]["arp@2"]) == (0.5, 0)
    assert found.weights == {"kept": "kept", "masked": "masked"}
    assert scores[0, 3] == 0.9  # the scorer's tensor is left as it was


def test_both_rules_by_hand_each_with_its_weights(tmp_path):
    """The five items again: what is best for one rule is another score than what is best for the other."""
    train = write_prepare(tmp_path, {"a": [3, 4, 5], "b": [6, 7, 6]}, 8, parts=1)
    write_cases(tmp_path, tmp_path / "cases.parquet", 8, negatives=2)
    scores = {
        "masked": torch.tensor([[0, 0, 0, 0.9, 0.8, 0.5, 0.2, 0.1], [0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.9]]),
        "kept": torch.tensor([[0, 0, 0, 0.3, 0.2, 0.5, 0.9, 0.8], [0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.9]]),
    }
    settings = {"train_counts": train, "max_length": 5, "ks": (1, 2)}
    both = rank_users(lambda _: scores, tmp_path / "cases.parquet", **settings)
    assert both.ranks["rank_full_masked"].tolist() == [1, 5], "3 and 4 left out; the repeated 6 is not found"
    assert both.ranks["rank_full_kept"].tolist() == [3, 2], "below 6 and 7; below 7"
    assert both.ranks["rank_sampled_masked"].tolist() == [1, 1] and both.ranks["rank_sampled_kept"].tolist() == [3, 1]
    one = rank_users(lambda _: {"masked": scores["masked"]}, tmp_path / "cases.parquet", **settings)
    assert one.ranks["rank_full_masked"].tolist() == [1, 5] and one.ranks["rank_full_kept"].tolist() == [3, 2]
    assert one.ranks["rank_sampled_kept"].tolist() == [1, 1]
    assert one.weights == {"masked": "masked", "kept": "masked"}


def test_a_repeated_target_is_neither_found_nor_shown_where_the_history_is_masked(tmp_path):
    """Without the rest of the history it would be the one item that was in it: to find it would be to be told."""
    train = write_prepare(tmp_path, {"a": [3, 4, 3]}, 8, parts=1)
    write_cases(tmp_path, tmp_path / "cases.parquet", 8, negatives=2)
    scores = torch.tensor([[0, 0, 0, 0.9, 1.0, 0.5, 0.2, 0.8]])
    result = rank_users(lambda _: scores, tmp_path / "cases.parquet", train_counts=train, max_length=1, ks=(2,))
    assert result.ranks["rank_full_masked"].tolist() == [5] and result.ranks["rank_full_kept"].tolist() == [2]
    assert result.ranks["rank_sampled_masked"].tolist() == [1]
    assert result.catalogue["masked"]["arp@2"] == 0, "7 and 5, which nobody has"


def test_excluded_history_is_not_cut(tmp_path):
    train = write_prepare(tmp_path, {"a": [3, 4, 5, 6]}, 8, parts=1)
    write_cases(tmp_path, tmp_path / "cases.parquet", 8, negatives=1)
    scores = torch.tensor([[0, 0, 0, 0.9, 0.8, 0.7, 0.5, 0.1]])
    result = rank_users(lambda _: scores, tmp_path / "cases.parquet", train_counts=train, max_length=1, ks=(2,))
    assert result.ranks["rank_full_masked"].tolist() == [1]


def test_equals_a_loop_over_users(tmp_path):
    cases, train = prepared(tmp_path)
    sequences, score = random_sequences(53, 120), linear_scorer(120)
    result = rank_users(score, cases, train_counts=train, max_length=4, batch_size=7)
    for row in result.ranks.itertuples():
        *history, target = sequences[row.user_id]
        scores = score(torch.tensor([history[-4:]]))[0].numpy()
        negatives = [item for item in range(FIRST_ITEM, 120) if item != target]
        assert row.rank_full_kept == 1 + sum(scores[item] > scores[target] for item in negatives)
        others = [item for item in negatives if item not in history]
        found = 1 + sum(scores[item] > scores[target] for item in others)
        assert row.rank_full_masked == (120 - FIRST_ITEM if target in history else found)
        assert row.history_length == len(history) and row.target == target


def test_batch_size_does_not_matter(tmp_path):
    cases, train = prepared(tmp_path)
    frames = [
        rank_users(linear_scorer(120), cases, train_counts=train, max_length=50, batch_size=size)
        for size in (1, 8, 52, 53, 500)
    ]
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0].ranks, other.ranks)
        assert frames[0].catalogue == other.catalogue


def test_one_protocol_only(tmp_path):
    cases, train = prepared(tmp_path)
    sampled = rank_users(linear_scorer(120), cases, train_counts=train, max_length=9, protocols=("sampled",))
    assert "rank_full_kept" not in sampled.ranks and sampled.catalogue == {}
    write_cases(tmp_path, cases, 120, negatives=0)
    full = rank_users(linear_scorer(120), cases, train_counts=train, max_length=9, protocols=("full",))
    assert "rank_sampled_kept" not in full.ranks


def test_noise_scores_at_chance_in_both_protocols(tmp_path):
    cases, train = prepared(tmp_path, users=3000, rows=203, negatives=99)
    generator = torch.Generator().manual_seed(1)
    noise = rank_users(
        lambda histories: torch.rand(len(histories), 203, generator=generator), cases, train_counts=train, max_length=50
    )
    for column, items in (("rank_full_kept", 200), ("rank_full_masked", 194), ("rank_sampled_kept", 100)):
        chance = 10 / items
        hit_rate = (noise.ranks[column] <= 10).mean()
        assert abs(hit_rate - chance) < 3 * (chance * (1 - chance) / 3000) ** 0.5


def test_wrong_shape_is_refused(tmp_path):
    cases, train = prepared(tmp_path)
    with pytest.raises(ValueError, match=r"expected scores \[53, 120\], found \[53, 5\]"):
        rank_users(lambda histories: torch.zeros(len(histories), 5), cases, train_counts=train, max_length=5)


def test_ranks_round_trip(tmp_path):
    cases, train = prepared(tmp_path)
    frame = rank_users(linear_scorer(120), cases, train_counts=train, max_length=9).ranks
    write_ranks(tmp_path / "ranks.parquet", [("a", 42, frame), ("b", 43, frame)])
    everything, one = read_ranks(tmp_path / "ranks.parquet"), read_ranks(tmp_path / "ranks.parquet", "b")
    assert len(everything) == 2 * len(frame) and set(everything[RECIPE]) == {"a", "b"}
    assert set(one[SEED]) == {43}
    pd.testing.assert_frame_equal(one.drop(columns=[RECIPE, SEED]).reset_index(drop=True), frame)


def test_ranks_of_an_earlier_version_are_of_one_rule(tmp_path):
    cases, train = prepared(tmp_path)
    frame = rank_users(linear_scorer(120), cases, train_counts=train, max_length=9).ranks
    old = frame[[USER, TARGET]].assign(rank_full=frame["rank_full_masked"], rank_sampled=frame["rank_sampled_masked"])
    write_ranks(tmp_path / "ranks.parquet", [("a", 42, old)])
    read = read_ranks(tmp_path / "ranks.parquet", "a", "masked")
    assert read["rank_full_masked"].equals(frame["rank_full_masked"]) and "rank_full_kept" not in read


def test_memory_does_not_grow_with_users(tmp_path):
    rows, peaks = 4003, {}
    for users in (500, 8000):
        directory = tmp_path / str(users)
        cases, train = prepared(directory, users=users, rows=rows)
        numpy_scorer = np.random.default_rng(0).random(rows, dtype=np.float32)

        def score(histories, weights=numpy_scorer):
            return torch.from_numpy(np.tile(weights, (len(histories), 1)))  # numpy memory is what tracemalloc sees

        gc.collect()
        tracemalloc.start()
        rank_users(score, cases, train_counts=train, max_length=50, batch_size=64)
        peaks[users] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # 7,500 more users may cost a user's few columns (here 100 bytes and its id), not 16 kB of scores.
    assert peaks[8000] - peaks[500] < 7500 * 300


def test_user_ids_stay_strings(tmp_path):
    cases, train = prepared(tmp_path)
    frame = rank_users(linear_scorer(120), cases, train_counts=train, max_length=9).ranks
    assert frame[USER].map(type).eq(str).all()


def test_what_the_masked_rule_hides_is_there_again_for_the_next_batch(tmp_path):
    cases, train = prepared(tmp_path)
    fixed = torch.randn(1, 120)
    before = fixed.clone()
    rank_users(lambda histories: fixed.expand(len(histories), -1).contiguous(), cases, train_counts=train, max_length=9)
    one = rank_users(lambda histories: fixed, cases, train_counts=train, max_length=9, batch_size=1)
    assert torch.equal(fixed, before)
    rows = rank_users(
        lambda histories: fixed.repeat(len(histories), 1), cases, train_counts=train, max_length=9, batch_size=7
    )
    pd.testing.assert_frame_equal(one.ranks, rows.ranks)


def test_a_model_of_sets_loses_nothing_when_histories_are_shuffled_and_one_of_the_last_item_does(tmp_path):
    cases, train = prepared(tmp_path)
    bag = linear_scorer(120)
    common = {"train_counts": train, "max_length": 9, "protocols": ("full",)}
    pd.testing.assert_frame_equal(
        rank_users(bag, cases, **common).ranks, rank_users(bag, cases, shuffle=3, **common).ranks
    )

    def of_last(histories):
        last = histories.gather(1, (histories > 0).sum(1, keepdim=True) - 1)
        return bag(last)

    straight, shuffled, again = (rank_users(of_last, cases, shuffle=seed, **common).ranks for seed in (None, 3, 3))
    assert not straight.equals(shuffled) and shuffled.equals(again)


def test_repeats_and_lengths_of_histories_are_groups(tmp_path):
    train = write_prepare(tmp_path, {"a": [3, 4, 3], "b": [3, 4, 5, 6, 7]}, 9)
    write_cases(tmp_path, tmp_path / "cases.parquet", 9, negatives=2)
    ranks = rank_users(linear_scorer(9), tmp_path / "cases.parquet", train_counts=train, max_length=3).ranks
    masks = group_masks(ranks, train, train, tail_item=2, tail_user=3)
    assert [ranks["user_id"][masks[name]].tolist() for name in ("repeat_item", "new_item")] == [["a"], ["b"]]
    assert [ranks["user_id"][masks[name]].tolist() for name in ("history_1_2", "history_3_4")] == [["a"], ["b"]]
    assert sum(int(masks[name].sum()) for name in LENGTHS) == 2


def test_a_large_catalogue_is_ranked_in_few_users_at_a_time(tmp_path, monkeypatch):
    cases, train = prepared(tmp_path)
    sizes = []
    monkeypatch.setattr(ranks_module, "SCORES_HELD", 120 * 5)
    rank_users(lambda histories: sizes.append(len(histories)) or linear_scorer(120)(histories), cases,
               train_counts=train, max_length=9)  # fmt: skip
    assert max(sizes) == 5
