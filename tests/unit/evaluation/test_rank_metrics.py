"""Hand-computed numbers, ties, and the ten-line reference."""

import doctest

import numpy as np
import pytest
import torch

from llmcfsr_merlin.evaluation import groups, metrics, significance
from llmcfsr_merlin.evaluation.metrics import MetricSums, rank_of_target
from llmcfsr_merlin.evaluation.report import tables as table


@pytest.mark.parametrize("module", [metrics, groups, significance, table], ids=lambda module: module.__name__)
def test_docstring_examples(module):
    globs = {"np": np, "torch": torch, **vars(module)}
    result = doctest.testmod(module, extraglobs=globs)
    assert result.attempted and not result.failed


def reference(scores, target, ks):
    """Metrics of one user without ties, from the sorted list itself."""
    order = sorted(range(len(scores)), key=lambda item: -scores[item])
    place = order.index(target)
    found = {"mrr": 1 / (place + 1)}
    for k in ks:
        gain = [1.0 if item == target else 0.0 for item in order[:k]]
        found[f"hr@{k}"] = sum(gain)
        found[f"ndcg@{k}"] = sum(g / np.log2(i + 2) for i, g in enumerate(gain))
        found[f"mrr@{k}"] = sum(g / (i + 1) for i, g in enumerate(gain))
    return found


def test_five_items_by_hand():
    # Places of the targets: 1, 3, 5. NDCG discounts: 1, 1 / log2(4) = 0.5, out.
    scores = torch.tensor([[9.0, 1, 2, 3, 4], [0.5, 0.4, 0.3, 0.2, 0.1], [1, 2, 3, 4, 5]])
    ranks = rank_of_target(scores, torch.tensor([0, 2, 0]), torch.zeros(3))
    assert ranks.tolist() == [1, 3, 5]
    sums = MetricSums([1, 3])
    sums.add(ranks.numpy())
    expected = {"hr@1": 1 / 3, "ndcg@1": 1 / 3, "hr@3": 2 / 3, "ndcg@3": 1.5 / 3, "mrr": (1 + 1 / 3 + 1 / 5) / 3}
    expected |= {"mrr@1": 1 / 3, "mrr@3": (1 + 1 / 3) / 3}
    assert sums.means() == pytest.approx(expected)


def test_equals_the_reference():
    generator = np.random.default_rng(0)
    scores, targets, ks = (
        generator.permuted(np.tile(np.arange(50.0), (200, 1)), axis=1),
        generator.integers(0, 50, 200),
        (1, 10),
    )
    ranks = rank_of_target(torch.tensor(scores), torch.tensor(targets), torch.rand(200))
    sums = MetricSums(ks)
    sums.add(ranks.numpy())
    per_user = [reference(row, target, ks) for row, target in zip(scores.tolist(), targets.tolist())]
    assert sums.means() == pytest.approx({name: np.mean([one[name] for one in per_user]) for name in per_user[0]})


def test_ties_are_placed_uniformly_by_the_tie_number():
    scores = torch.tensor([[5.0, 3, 3, 3, 1]]).repeat(3, 1)
    assert rank_of_target(scores, torch.tensor([1, 2, 3]), torch.tensor([0.0, 0.5, 0.999999])).tolist() == [2, 3, 4]


@pytest.mark.parametrize("constant", [0.0, -torch.inf])
def test_a_constant_scorer_scores_at_chance(constant):
    users, items, k = 20_000, 40, 10
    ranks = rank_of_target(
        torch.full((users, items), constant),
        torch.zeros(users, dtype=torch.long),
        torch.rand(users, dtype=torch.float64),
    )
    chance = k / items
    assert abs((ranks <= k).double().mean().item() - chance) < 3 * (chance * (1 - chance) / users) ** 0.5
    assert ranks.min() == 1 and ranks.max() == items


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank_of_target(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]), torch.zeros(1))


def test_zero_based_ranks_are_refused():
    with pytest.raises(ValueError, match="1-based"):
        MetricSums([10]).add(np.array([0, 4]))
