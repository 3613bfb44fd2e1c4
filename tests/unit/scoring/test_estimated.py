"""Scores that are nearly right find the exact best items, or say that they do not: ties, filters, retired items."""

import pytest
import torch

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorer import Estimate
from llmcfsr_merlin.scoring.scorers import rounded_cosines
from llmcfsr_merlin.scoring.scorers.rounded_cosines import RoundedCosines, Scale
from llmcfsr_merlin.scoring.search import estimated
from tests.unit.scoring.test_shortlist import ITEMS, K, world


class Cosines:
    """A compiler that leaves all to torch: the content score keeps its table of cosines."""

    products = True
    kernel = None

    def module(self, module, example, free):
        return None

    def product(self, matrix):
        return None


def rankers(seed: int, weights: dict | None = None, **settings) -> tuple[Ranker, Ranker, torch.Tensor]:
    """The same model with estimates and without, and histories."""
    (first, histories), (second, _) = (world(seed, weights) for _ in range(2))
    nearly, plain = Ranker(first, **settings), Ranker(second)
    first.compile(Cosines())
    assert first.scorers["content"].estimates(9) and not second.scorers["content"].estimates(9)
    return nearly, plain, histories


def same(found, wanted):
    assert torch.equal(found.items, wanted.items) and bool(found.exact.all())
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spare", [(14, 86), (1, 2)], ids=["enough", "too few to prove it"])
@pytest.mark.parametrize("seed", range(9))
def test_the_answer_is_that_of_the_full_ranking(seed, spare, monkeypatch):
    monkeypatch.setattr(estimated, "_SPARE", spare)
    nearly, plain, histories = rankers(seed)
    for model in (nearly.model, plain.model):
        model.retire(list(range(20, 40)))
    same(nearly.find(histories, K), plain.find(histories, K))
    random = torch.Generator().manual_seed(seed)
    blocked = torch.rand(len(histories), ITEMS + FIRST_ITEM, generator=random) < 0.5
    blocked[0, 5:] = blocked[1] = True
    same(nearly.find(histories, K, blocked), plain.find(histories, K, blocked))


def test_equal_items_come_by_their_id():
    model, _ = world(0)
    nearly, plain, _ = rankers(0, dict.fromkeys(model.weights, 0.0) | {"content": 1.0})
    for ranker in (nearly, plain):
        for vectors in (ranker.model.vectors.semantic, ranker.model.vectors.lexical):
            vectors[50:120] = vectors[50]
        ranker.model.prepare()
    nearly.model.compile(Cosines())
    histories = torch.tensor([[50], [51], [30]])
    found, wanted = nearly.find(histories, K), plain.find(histories, K)
    same(found, wanted)
    assert found.items[0].tolist() == list(range(50, 50 + K))  # here an item is compared with itself, too


def test_what_proves_nothing_is_said_and_ranked_in_full(monkeypatch):
    nearly, plain, histories = rankers(3)
    content, right = nearly.model.scorers["content"], nearly.model.scorers["content"].add_estimate
    wrong = lambda self, asked, total: Estimate(1e9, right(asked, total).exact)  # noqa: E731
    monkeypatch.setattr(type(content), "add_estimate", wrong)
    found = estimated.best_by_estimates(nearly.model, histories, K, None)
    assert not found.exact.any()
    same(nearly.find(histories, K), plain.find(histories, K))


def test_more_than_the_table_is_made_for_is_ranked_in_full():
    nearly, plain, histories = rankers(1)
    same(nearly.find(histories, ITEMS), plain.find(histories, ITEMS))
    assert estimated.best_by_estimates(nearly.model, histories, ITEMS, None) is None


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("rows", [7, 1000])
def test_rounded_cosines_are_off_by_their_error_at_most(itself, rows, monkeypatch):
    monkeypatch.setattr(rounded_cosines, "_ROWS", rows)
    units = torch.nn.functional.normalize(torch.randn(60, 9, generator=torch.Generator().manual_seed(1)), dim=1)
    units[:FIRST_ITEM] = 0
    asked = torch.tensor([[5, 9, 30], [8, 0, 0], [0, 0, 0], [7, 7, 0]])
    table, weights, found = RoundedCosines(units, itself), torch.linspace(-2, 3, 60), torch.ones(4, 60)
    scale = Scale.of(weights)
    table.add_largest(asked, scale, found)
    assert scale.error < 0.013
    everything = torch.arange(60)
    exact = table.exact(units, asked, everything.repeat(4, 1))
    for row, right, history in zip(found, exact, asked):
        own = history[history >= FIRST_ITEM]
        cosines = (units @ units[own].T).masked_fill((everything[:, None] == own) & (not itself), -2.0)
        best = cosines.amax(1) if len(own) else torch.zeros(60)
        best = best.masked_fill(best == -2, 0)
        torch.testing.assert_close(right, best, atol=1e-6, rtol=0)
        assert float((row - 1 - weights * best).abs().max()) <= scale.error


def test_a_large_catalogue_has_no_table(monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.scoring.scorers.content.SMALL", ITEMS)
    model, _ = world(1)
    Ranker(model)
    model.compile(Cosines())
    assert not model.scorers["content"].estimates(1)


@pytest.mark.parametrize("rows", [1, 4])
def test_weights_that_are_set_later_are_used(rows):
    """One history reads the views in bytes, too."""
    nearly, plain, histories = rankers(2)
    assert nearly.model.scorers["network"].estimates(rows) == (rows == 1)
    for weight in (1.0, -2.0, 6.0):
        for ranker in (nearly, plain):
            ranker.model.set_weights({name: weight for name in ("network", "content", "content_cold", "transitions")})
        for row in range(0, len(histories) - rows + 1, rows):
            same(nearly.find(histories[row : row + rows], K), plain.find(histories[row : row + rows], K))
