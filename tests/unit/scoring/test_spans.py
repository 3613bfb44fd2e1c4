"""Shards of a catalogue rank their part as the whole does: merged, they are the same list to the last tie."""

import numpy as np
import pytest
import torch

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.ranker import Ranker, shard_span
from llmcfsr_merlin.scoring.scorer import Scorer
from tests.models import model_config, random_model

ITEMS, LENGTH = 83, 12


RETIRED = (5, 30, 41, 82)


def model(**settings):
    found = random_model(model_config(**settings), ITEMS, LENGTH, lexical=8)
    for vectors in (found.vectors.semantic, found.vectors.lexical):
        if vectors is not None:
            vectors[40:50] = vectors[30:40]  # ties
    found.retire(RETIRED)
    return found


def histories() -> torch.Tensor:
    asked = torch.randint(3, ITEMS, (20, LENGTH), generator=torch.Generator().manual_seed(0))
    return asked.masked_fill(torch.arange(LENGTH) >= torch.arange(20)[:, None] % (LENGTH + 1), 0)


@pytest.mark.parametrize("settings", [{}, {"views": ("semantic",)}, {"content_match": False}], ids=str)
def test_merged_shards_are_the_whole(settings):
    asked, k = histories(), 10
    blocked = torch.rand(20, ITEMS, generator=torch.Generator().manual_seed(1)) < 0.5
    whole = Ranker(model(**settings))
    shards = [Ranker(model(**settings), shard=(number, 3)) for number in (1, 2, 3)]
    for mask in (None, blocked):
        items, scores = whole.top_k(asked, k, mask)
        parts = [shard.top_k(asked, k, mask) for shard in shards]
        for shard, (own, _) in zip(shards, parts):
            assert ((own == 0) | ((own >= shard.span.start) & (own < shard.span.stop))).all()
        merged, places = torch.cat([part for _, part in parts], 1).sort(dim=1, descending=True, stable=True)
        found = torch.cat([own for own, _ in parts], 1).gather(1, places)
        assert torch.equal(found[:, :k], items) and torch.allclose(merged[:, :k], scores)
        assert not torch.isin(items, torch.tensor(RETIRED)).any()


def test_every_scorer_gives_the_items_of_a_span_what_it_gives_them_among_all():
    asked, span = histories(), slice(20, 45)
    found, plain = model().prepare(), model().prepare()
    found.restrict(span)
    found.prepare()
    for name, part in found.scorers.items():
        torch.testing.assert_close(part.of_span(asked, span), plain.scorers[name].weighted(asked)[:, span])
        torch.testing.assert_close(Scorer.of_span(plain.scorers[name], asked, span), part.of_span(asked, span))
    items = torch.arange(20, 45).expand(20, -1)
    for name, share in plain.explain(asked, items).items():
        torch.testing.assert_close(found.explain(asked, items)[name], share)
    assert torch.equal(found.match(asked, items), plain.match(asked, items))


@pytest.mark.parametrize("number, count", [(0, 3), (4, 3), (1, 81)])
def test_a_shard_that_cannot_be_is_refused(number, count):
    with pytest.raises(InputError, match=f"found {number}/{count}"):
        shard_span(ITEMS, number, count)


def test_shards_cover_every_item_once():
    for count in (1, 2, 7, 80):
        spans = [shard_span(ITEMS, number, count) for number in range(1, count + 1)]
        assert np.concatenate([np.arange(span.start, span.stop) for span in spans]).tolist() == list(range(3, ITEMS))
