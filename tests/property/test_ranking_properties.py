"""Properties of ranks and metrics for any scores."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcfsr_merlin.evaluation.lists import ItemFacts, ListSums
from llmcfsr_merlin.evaluation.metrics import MetricSums, gains, rank_of_target
from llmcfsr_merlin.evaluation.significance import holm

scores_and_target = st.lists(st.integers(-5, 5), min_size=1, max_size=30).flatmap(
    lambda scores: st.tuples(st.just(scores), st.integers(0, len(scores) - 1))
)
tie = st.floats(0, 1, exclude_max=True)
ranks = st.lists(st.integers(1, 200), min_size=1, max_size=50)


def rank(scores, target, tie):
    row = torch.tensor([scores], dtype=torch.float32)
    return rank_of_target(row, torch.tensor([target]), torch.tensor([tie], dtype=torch.float64)).item()


@given(scores_and_target, tie, st.randoms())
def test_permuting_the_catalogue_changes_no_rank(case, tie, random):
    scores, target = case
    order = list(range(len(scores)))
    random.shuffle(order)
    assert rank([scores[item] for item in order], order.index(target), tie) == rank(scores, target, tie)


@given(scores_and_target, tie)
def test_rank_lies_between_its_best_and_worst_place(case, tie):
    scores, target = case
    above = sum(score > scores[target] for score in scores)
    tied = sum(score == scores[target] for score in scores)
    assert above + 1 <= rank(scores, target, tie) <= above + tied


@given(scores_and_target, tie)
def test_an_increasing_map_of_scores_changes_no_rank(case, tie):
    scores, target = case
    assert rank([3 * score**3 + score - 7 for score in scores], target, tie) == rank(scores, target, tie)


@given(ranks, st.integers(1, 50), st.integers(1, 50))
def test_metrics_grow_with_k_and_stay_in_bounds(ranks, k, more):
    found = gains(np.array(ranks), (k, k + more))
    for name in ("hr", "ndcg"):
        assert (found[f"{name}@{k}"] <= found[f"{name}@{k + more}"]).all()
    assert (found[f"ndcg@{k}"] <= found[f"hr@{k}"]).all()
    assert all(((values >= 0) & (values <= 1)).all() for values in found.values())


@given(ranks, st.integers(1, 49))
def test_any_cut_into_batches_gives_the_same_means(ranks, cut):
    whole, parts = MetricSums([5, 10]), MetricSums([5, 10])
    whole.add(np.array(ranks))
    parts.add(np.array(ranks[:cut]))
    parts.add(np.array(ranks[cut:]))
    assert parts.means() == pytest.approx(whole.means(), rel=1e-12)


@given(st.lists(st.lists(st.integers(3, 12), min_size=3, max_size=3, unique=True), min_size=1, max_size=20))
def test_coverage_grows_with_k_and_gini_is_a_share(lists):
    sums = ListSums([1, 2, 3], ItemFacts(np.ones(13, np.int64)))
    sums.add(np.array(lists), np.full(len(lists), 3), np.full((len(lists), 1), 4))
    values = sums.values()
    assert values["coverage@1"] <= values["coverage@2"] <= values["coverage@3"] <= 1
    assert all(-1e-12 <= values[f"gini@{k}"] < 1 and values[f"arp@{k}"] == 1 for k in (1, 2, 3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_the_raw_value_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for raw, one in zip(p_values, corrected):
        assert raw - 1e-12 <= one <= min(1, raw * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
