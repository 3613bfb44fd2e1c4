"""The shortlist: listed items are scored exactly, blocked ones stay out, and it finds what the full ranking finds."""

import pytest
import torch

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorers import content
from tests.unit.scoring.test_network import ROWS, build, histories

HISTORIES = histories([5, 9, 30], [7], list(range(10, 20)), [])


@pytest.fixture(params=[16, 8], ids=["all 16 dimensions", "8 of 16"])
def reduced(request, monkeypatch):
    monkeypatch.setattr(content, "_REDUCED", request.param)
    return request.param


def test_listed_items_have_their_exact_scores(reduced):
    model = build(lexical=8)
    scores = Ranker(model).scores(HISTORIES)
    codes, found = Ranker(model, shortlist=20).top_k(HISTORIES, 8)
    torch.testing.assert_close(found, scores.gather(1, codes))
    assert (found.diff(dim=1) <= 0).all() and (codes >= FIRST_ITEM).all()
    assert all(len(set(row)) == 8 for row in codes.tolist())
    exact = Ranker(model).top_k(HISTORIES, 8)[0]
    same = sum(len(set(a) & set(b)) for a, b in zip(codes.tolist(), exact.tolist())) / codes.numel()
    assert same == 1 if reduced == 16 else same > 0.8  # 20 of 57 items by half of the dimensions


def test_blocked_items_stay_out_and_their_places_empty(reduced):
    blocked = torch.ones(4, ROWS, dtype=torch.bool)
    blocked[:, [5, 40, 41]] = False
    codes, scores = Ranker(build(), shortlist=20).top_k(HISTORIES, 8, blocked)
    exact = Ranker(build()).top_k(HISTORIES, 8, blocked)
    assert torch.equal(codes, exact[0]), "three items that are left are all found"
    torch.testing.assert_close(scores, exact[1])


@pytest.mark.parametrize("shortlist", [ROWS, 6])
def test_too_long_or_too_short_a_list_is_the_exact_ranking(shortlist):
    model = build(lexical=8)
    found, exact = Ranker(model, shortlist=shortlist).top_k(HISTORIES, 8), Ranker(model).top_k(HISTORIES, 8)
    assert torch.equal(found[0], exact[0]) and torch.equal(found[1], exact[1])
