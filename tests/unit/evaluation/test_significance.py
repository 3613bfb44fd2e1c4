"""Paired tests: right coverage on null data, power on real differences, errors on runs that cannot be paired."""

import numpy as np
import pandas as pd
import pytest

from llmcfsr_merlin.evaluation import significance
from llmcfsr_merlin.evaluation.significance import compare, holm, paired_test
from llmcfsr_merlin.runtime.errors import InputError


def ranks_frame(seed, users=400, better=0.0):
    generator = np.random.default_rng(seed)
    ranks = np.where(generator.random(users) < better, 1, generator.integers(1, 101, users))
    return pd.DataFrame(
        {
            "user_id": [f"u{u}" for u in range(users)],
            "target": np.arange(users),
            "rank_full_kept": ranks,
            "rank_sampled_kept": ranks,
        }
    )


def test_null_data_is_covered_and_rejected_at_the_nominal_rate():
    trials, inside, rejected = 300, 0, 0
    generator = np.random.default_rng(0)
    for _ in range(trials):
        differences = generator.choice([-1.0, -0.4, 0, 0, 0.4, 1.0], 200)
        low, high, p = paired_test(differences, 0.95, 500, generator)
        inside += low <= 0 <= high
        rejected += p < 0.05
    # Binomial(300, .95) and (300, .05): four standard deviations are 0.05.
    assert abs(inside / trials - 0.95) < 0.05
    assert abs(rejected / trials - 0.05) < 0.05


def test_agrees_with_the_plain_bootstrap_and_permutation():
    generator = np.random.default_rng(1)
    differences = generator.normal(0.1, 1, 150).round(1)
    low, high, p = paired_test(differences, 0.95, 20_000, generator)
    plain = differences[generator.integers(0, 150, (20_000, 150))].mean(1)
    signs = generator.choice([-1, 1], (20_000, 150))
    plain_p = (abs((signs * differences).mean(1)) >= abs(differences.mean()) - 1e-12).mean()
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.01)
    assert p == pytest.approx(plain_p, abs=0.02)


def test_the_normal_limit_agrees_with_resampling(monkeypatch):
    generator = np.random.default_rng(2)
    differences = 1 / generator.integers(1, 5000, 6000) - 1 / generator.integers(1, 4000, 6000)
    limit = paired_test(differences, 0.95, 4000, generator)
    monkeypatch.setattr(significance, "_NORMAL_FROM", 10**9)
    resampled = paired_test(differences, 0.95, 4000, generator)
    width = resampled[1] - resampled[0]
    assert limit[:2] == pytest.approx(resampled[:2], abs=0.05 * width) and limit[2] == pytest.approx(
        resampled[2], abs=0.03
    )


def test_a_real_difference_is_found_with_its_sign():
    masks = {"overall": np.ones(400, bool), "nobody": np.zeros(400, bool)}
    rows = compare(ranks_frame(1, better=0.4), ranks_frame(2), masks, (10,), resamples=2000)
    assert {row["group"] for row in rows} == {"overall"} and len(rows) == 2 * 3
    for row in rows:
        assert row["difference"] == pytest.approx(row["value"] - row["base"])
        assert 0 < row["low"] < row["difference"] < row["high"] and row["p_holm"] < 0.05
        assert row["relative"] == pytest.approx(row["difference"] / row["base"])


def test_equal_runs_have_no_difference():
    (row, *_) = compare(ranks_frame(1), ranks_frame(1), {"overall": np.ones(400, bool)}, resamples=200)
    assert row["difference"] == row["low"] == row["high"] == 0 and row["p"] == 1


def test_order_of_users_does_not_matter_and_the_seed_fixes_the_numbers():
    masks = {"first": np.arange(400) < 100}
    one, base = ranks_frame(1, better=0.1), ranks_frame(2)
    settings = {"resamples": 300, "seed": 5}
    assert compare(one, base, masks, **settings) == compare(one.sample(frac=1, random_state=0), base, masks, **settings)


def test_seeds_are_averaged_per_user():
    several = pd.concat([ranks_frame(seed).assign(seed=seed) for seed in (1, 2)])
    base = ranks_frame(3)
    rows = compare(several, base, {"overall": np.ones(400, bool)}, resamples=100)
    hit = next(row for row in rows if row["metric"] == "hr@10")
    assert hit["value"] == pytest.approx((several["rank_full_kept"] <= 10).mean()) and hit["count"] == 400


def test_other_users_or_targets_are_an_error():
    masks = {"overall": np.ones(400, bool)}
    with pytest.raises(InputError, match="same prepared data"):
        compare(ranks_frame(1, users=300), ranks_frame(2), masks)
    with pytest.raises(InputError, match="same prepared data"):
        compare(ranks_frame(1).assign(target=7), ranks_frame(2), masks)


def test_holm_by_hand():
    assert holm([0.2, 0.001, 0.02, 0.9]) == pytest.approx([0.4, 0.004, 0.06, 0.9])
    assert holm([]) == [] and holm([0.5, 0.6]) == [1, 1]


def test_several_targets_of_a_user_are_one_value():
    """The mean over the user's targets that are in the group; users are counted."""
    base = pd.DataFrame({
        "user_id": list("aaab"), "history_length": [3, 4, 5, 3], "target": [7, 8, 9, 7], "rank_full_kept": [100] * 4
    })  # fmt: skip
    ours = base.assign(rank_full_kept=[1, 100, 100, 1]).sample(frac=1, random_state=0)
    masks = {"overall": np.ones(4, bool), "some": np.array([True, True, False, False])}
    found = {row["group"]: row for row in compare(ours, base, masks) if row["metric"] == "hr@10"}
    assert found["overall"]["value"] == pytest.approx((1 / 3 + 1) / 2) and found["overall"]["count"] == 2
    assert found["some"]["value"] == pytest.approx(1 / 2) and found["some"]["count"] == 1
    with pytest.raises(InputError, match="different"):
        compare(ours, base.assign(target=[7, 8, 6, 7]), masks)
    with pytest.raises(ValueError, match="one row for each of"):
        compare(pd.concat([ours, ours]), base, masks)
