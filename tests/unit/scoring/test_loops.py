"""Numba's loops give what the scorers give without them."""

import numpy as np
import pytest
import torch

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorers.rounded_views import RoundedViews
from llmcfsr_merlin.scoring.search import places
from tests.unit.scoring.test_shortlist import world


def histories() -> torch.Tensor:
    """Repeats, one item, none, and as long as a model reads."""
    random = torch.Generator().manual_seed(4)
    codes = torch.randint(FIRST_ITEM, 60, (6, 10), generator=random)
    codes[0, 4:] = codes[2, 1:] = codes[3] = 0
    codes[1, 5] = codes[1, 6] = codes[1, 0]
    return codes


@pytest.mark.parametrize("score_history", [False, True])
@pytest.mark.parametrize("unused", [None, "transitions_borrowed", "co_occurrence"])
def test_every_scorer_adds_what_it_weighs(unused, score_history):
    model, _ = world(2)
    model.set_weights({name: 0.3 + place for place, name in enumerate(model.weights)})
    model.scorers["transitions"].settings = model.scorers["transitions"].settings.model_copy(
        update={"score_history": score_history}
    )
    Ranker(model)
    if unused:
        model.set_weights({unused: 0.0})
    asked = histories()
    with torch.inference_mode():
        for name, part in model.scorers.items():
            total = torch.full((len(asked), model.shape.n_items), 2.0)
            part.add_to(asked, total)
            wanted = part.weighted(asked)
            assert name == "repeats" or wanted[:, FIRST_ITEM:].any(), name
            torch.testing.assert_close(total[:, FIRST_ITEM:] - 2, wanted[:, FIRST_ITEM:], atol=1e-5, rtol=1e-5)


def test_weights_that_change_are_used():
    model, _ = world(2)
    Ranker(model)
    asked = histories()
    for weight in (0.5, 3.0):
        model.set_weights({"transitions": weight, "transitions_borrowed": weight, "co_occurrence": weight})
        total = torch.zeros(len(asked), model.shape.n_items)
        model.scorers["transitions"].add_to(asked, total)
        wanted = model.scorers["transitions"].weighted(asked)
        torch.testing.assert_close(total[:, FIRST_ITEM:], wanted[:, FIRST_ITEM:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 7, 256])
def test_rounded_views_are_off_by_what_they_say(width):
    random = torch.Generator().manual_seed(width)
    views = torch.randn(300, width, generator=random) * torch.linspace(0.01, 5, width)
    views[:, 0] = 0 if width > 1 else views[:, 0]  # a column of zeros
    table = RoundedViews(views)
    states = 3 * torch.randn(4, width, generator=random)
    total = torch.ones(4, 300)
    error = table.add_products(states, total)
    off = float((total.double() - 1 - states.double() @ views.double().T).abs().max())
    assert off <= error < 0.05 * float(states.norm(dim=1).max() * views.norm(dim=1).max())


@pytest.mark.parametrize("shortlist", [0, 50])
@pytest.mark.parametrize(
    "codes, found", [([[5] * 13], "at most 12 items, found 13"), ([[5, 303]], "found 5 to 303"), ([[-1, 4]], "-1 to 4")]
)
def test_what_loops_would_read_beyond_their_tables_is_refused(codes, found, shortlist):
    ranker = Ranker(world(2)[0], shortlist=shortlist)
    for ask in (lambda asked: ranker.find(asked, 5), ranker.scores):
        with pytest.raises(ValueError, match=found):
            ask(torch.tensor(codes))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 3000])
def test_places_of_large_numbers_are_all_but_the_infinitely_small(count):
    random = np.random.default_rng(count)
    values = random.normal(size=count).astype(np.float32).round(1)  # ties
    values[random.random(count) < 0.3] = -np.inf
    for least in (-np.inf, -1.0, 0.1, 9.0, *values[:3].tolist()):
        found = places.at_least(values, least)
        assert found.tolist() == np.flatnonzero((values >= np.float32(least)) & (values > -np.inf)).tolist()
