"""The search with bounds: an answer that is said to be exact is the full ranking's, with ties, filters and growth."""

import pytest
import torch

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.ranker import Ranker, pad
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.scoring.search import best_items, byte_products, rounded
from llmcfsr_merlin.scoring.search.bound_tables import SEAL, take_tables, write_tables
from tests.models import model_config, random_model

K, ITEMS = 8, 300
SCORERS = ("network", "content", "transitions", "repeats", "popularity")


def world(seed: int, weights: dict[str, float] | None = None, twins: bool = True):
    """A model of random weights over ITEMS items, some of which are the same: ties."""
    random = torch.Generator().manual_seed(seed)
    scorers = model_config(lexical_share=0.3).model_dump()["scorers"] | {"repeats": {}, "popularity": {}}
    scorers["content"]["match_itself"] = scorers["transitions"]["score_history"] = seed % 3 == 0
    config = ModelConfig(name="llm_cfsr", scorers=scorers)
    model = random_model(config, ITEMS + FIRST_ITEM, 12, lexical=8, seed=seed)
    scorers = model.scorers
    scorers["popularity"].log_counts.copy_(torch.rand(ITEMS + FIRST_ITEM, generator=random) * 3)
    without = torch.randint(FIRST_ITEM, ITEMS, (40,), generator=random)
    scorers["transitions"].next_weights[without] = scorers["transitions"].next_cosines[without] = 0
    drawn = {name: float(torch.randn(1, generator=random)) * 3 for name in model.weights}
    model.set_weights(drawn if weights is None else weights)
    histories = [torch.randint(FIRST_ITEM, ITEMS, (length,), generator=random).tolist() for length in (1, 3, 8, 12)]
    return model, pad([*histories, [5, 5, 9], []], 12)


def same(found, exact, scores):
    """Rows that are said to be exact hold the same scores, and each item its own."""
    for row in found.exact.nonzero()[:, 0].tolist():
        torch.testing.assert_close(found.scores[row], exact.scores[row], atol=1e-4, rtol=1e-4)
    left = found.items >= FIRST_ITEM
    torch.testing.assert_close(found.scores[left], scores.gather(1, found.items)[left], atol=1e-4, rtol=1e-4)
    for items in found.items.tolist():
        real = [item for item in items if item]
        assert len(set(real)) == len(real)


@pytest.fixture(params=["one step", "few leading axes"])
def narrow(request, monkeypatch):
    if request.param != "one step":
        monkeypatch.setattr(rounded, "ROOM", 1)
        monkeypatch.setattr(best_items, "_FIRST", 16)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most", [9, 60, 299])
def test_what_is_said_to_be_exact_is_the_full_ranking(seed, most, narrow):
    model, histories = world(seed)
    exact, scores = Ranker(model).find(histories, K), Ranker(model).scores(histories)
    found = Ranker(model, shortlist=most).find(histories, K)
    same(found, exact, scores)
    if most == 299:
        assert found.exact.all()
    certain = Ranker(model, shortlist=most, uncertain="exact").find(histories, K)
    assert certain.exact.all()
    same(certain, exact, scores)


def spoil(model, how: str) -> None:
    """Vectors and views for which rounding and a turn to few axes are bad."""
    random = torch.Generator().manual_seed(1)
    views = model.scorers["network"].network.items.collaborative.weight
    vectors = model.vectors.semantic
    if how == "one item is far out":
        views[17], vectors[17] = views[17] * 1000, vectors[17] * 1000
    elif how == "all alike":
        views[FIRST_ITEM:] = views[FIRST_ITEM] + 1e-5 * views[FIRST_ITEM:]
        vectors[FIRST_ITEM:] = vectors[FIRST_ITEM] + 1e-5 * vectors[FIRST_ITEM:]
    elif how == "one axis":
        views[FIRST_ITEM:] = torch.randn(ITEMS, 1, generator=random) * views[FIRST_ITEM]
        vectors[FIRST_ITEM:] = torch.randn(ITEMS, 1, generator=random) * vectors[FIRST_ITEM]
    elif how == "twins":
        views[FIRST_ITEM + 1 :: 2], vectors[FIRST_ITEM + 1 :: 2] = views[FIRST_ITEM:-1:2], vectors[FIRST_ITEM:-1:2]
    elif how == "nothing":
        views.zero_()
        vectors.zero_()
    elif how == "text alone":
        model.set_weights({name: 32.0 if name == "content" else 0.0 for name in model.weights})
    elif how == "against the text":
        model.set_weights({"content": -8.0, "content_cold": 11.0, "network": -1.0})


SPOILT = (
    "one item is far out", "all alike", "one axis", "twins", "nothing", "text alone", "against the text"
)  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("most", [9, 120])
@torch.inference_mode()
def test_no_spoilt_model_makes_the_proof_lie(how, most, narrow):
    for seed in range(3):
        model, histories = world(seed)
        spoil(model, how)
        exact, scores = Ranker(model).find(histories, K), Ranker(model).scores(histories)
        same(Ranker(model, shortlist=most).find(histories, K), exact, scores)


@pytest.mark.parametrize("how", [None, *SPOILT])
@torch.inference_mode()
def test_no_scorer_bounds_an_item_too_low(how, narrow):
    """Both bounds of every item, scorer by scorer, against its score; the closer one is closer."""
    for seed in range(3):
        model, histories = world(seed)
        if how:
            spoil(model, how)
        model.prepare()
        every = torch.arange(FIRST_ITEM, model.shape.n_items)
        for part in model.active:
            bound, scores = part.bound(histories), part.weighted(histories)
            for row in range(len(histories)):
                upper = part.ceiling().clone()
                part.add_bound(bound, row, upper)
                own = bound.keys // model.shape.n_items == row
                upper.index_add_(0, bound.keys[own] % model.shape.n_items, bound.lifts[own])
                noise = 1e-5 * (1 + scores[row].abs()[every])
                assert (upper[every] - scores[row][every] > -noise).all(), type(part).__name__
                excess = part.excess(bound, row, histories[row : row + 1], every)
                if excess is not None:
                    assert (upper[every] - excess - scores[row][every] > -noise).all(), type(part).__name__


@pytest.mark.parametrize("seed", range(6))
def test_filters_keep_k_results_and_the_proof(seed, narrow):
    model, histories = world(seed)
    full, quick = Ranker(model), Ranker(model, shortlist=60)
    random = torch.Generator().manual_seed(seed)
    seen = [row[row >= FIRST_ITEM].tolist() for row in histories]
    some = torch.randperm(ITEMS, generator=random)[:50].add(FIRST_ITEM).tolist()
    for blocked in (
        full.blocked([None] * 6, seen), full.blocked([some] * 6, [[]] * 6), full.blocked([some[:3]] * 6, seen),
        full.blocked([None] * 6, [full.top_k(histories, 100)[0][0].tolist()] * 6),
    ):  # fmt: skip
        exact, found = full.find(histories, K, blocked), quick.find(histories, K, blocked)
        scores = full.scores(histories).masked_fill(blocked, -torch.inf)
        same(found, exact, scores)
        assert torch.equal((found.items > 0).sum(1), (exact.items > 0).sum(1))
        assert not blocked.gather(1, found.items)[found.items > 0].any()


@pytest.mark.parametrize("seed", range(4))
def test_retired_items_are_not_found(seed, narrow):
    model, histories = world(seed)
    gone = Ranker(model).top_k(histories, 3)[0].unique()
    model.retire(gone[gone >= FIRST_ITEM].tolist())
    exact, found = Ranker(model).find(histories, K), Ranker(model, shortlist=60).find(histories, K)
    same(found, exact, Ranker(model).scores(histories))
    assert not torch.isin(found.items[found.items > 0], gone).any() and (found.items > 0).all()


def test_equal_scores_are_ordered_by_id():
    model, histories = world(3, {"network": 0.0, "content": 0.0, "content_cold": 0.0, "transitions": 0.0,
                                 "transitions_borrowed": 0.0, "popularity": 1.0})  # fmt: skip
    model.scorers["popularity"].log_counts[:] = torch.randint(0, 3, (ITEMS + FIRST_ITEM,)).float()
    exact, found = Ranker(model).find(histories, K), Ranker(model, shortlist=250).find(histories, K)
    assert found.exact.all() and torch.equal(found.items, exact.items)


def test_new_items_join_the_search():
    model, histories = world(4, {"content": 3.0, "content_cold": 2.0, "transitions": 0.5, "transitions_borrowed": 1.0})
    Ranker(model, shortlist=100).find(histories, K)
    model.append_items(NewItems(20, torch.randn(20, 16), torch.randn(20, 8)))
    found, exact = Ranker(model, shortlist=100).find(histories, K), Ranker(model).find(histories, K)
    same(found, exact, Ranker(model).scores(histories))
    assert found.exact.all()


def test_leading_axes_follow_vectors_and_queries():
    """Vectors vary most where no query lies: the bound from few axes is close nonetheless, and all axes are closer."""
    torch.manual_seed(0)
    vectors = torch.randn(3000, 200) * torch.logspace(-2, 1, 200) + torch.randn(200)
    queries = torch.randn(500, 200) * torch.logspace(1.5, -4.5, 200)
    table = rounded.round_vectors(lambda own: vectors[own], len(vectors), queries)
    items = torch.arange(FIRST_ITEM, 3000)
    assert table.head.shape == (3000, 128) and table.rest.shape == (3000, 73)
    for query in queries[:20]:
        asked, upper, exact = table.query(query), torch.zeros(3000), vectors.double() @ query.double()
        table.add_upper(asked, upper)
        first = (upper - exact)[items]
        close = first - table.excess(asked, items)
        assert (first >= 0).all() and (close >= 0).all()
        assert close.mean() < first.mean() < 0.7 * exact.std() and close.mean() < 0.5 * exact.std()


def test_products_of_bytes_are_off_by_their_unit_at_most():
    torch.manual_seed(0)
    for width in (1, 15, 129, 512):
        rows, queries = torch.randint(-127, 128, (70, width), dtype=torch.int8), torch.randn(3, width)
        items, total = torch.tensor([5, 69, 5]), torch.zeros(3, 70)
        byte_products.add_products(rows.numpy(), queries.numpy(), total.numpy())
        some = byte_products.products_of(rows.numpy(), items.numpy(), queries.numpy())
        exact = queries.double() @ rows.double().T
        off = width * rounded.UNIT * queries.norm(dim=1)[:, None] * rows.float().norm(dim=1)
        assert ((total - exact).abs() <= off).all()
        assert ((torch.from_numpy(some) - exact[:, items]).abs() <= off[:, items]).all()


def test_tables_are_read_again(tmp_path):
    weights = {"content": 3.0, "content_cold": 1.0, "transitions": 0.5}
    model, histories = world(6, weights)
    write_tables(model, tmp_path)
    again, _ = world(6, weights)
    assert take_tables(again, tmp_path) and not take_tables(again, tmp_path / "nowhere")
    for name in ("network", "content"):
        for kept, made in zip(again.scorers[name].rounded, model.scorers[name].rounded):
            assert torch.equal(kept, made)
    full = Ranker(model)
    same(Ranker(again, shortlist=60).find(histories, K), full.find(histories, K), full.scores(histories))
    again.append_items(NewItems(9, torch.randn(9, 16), torch.randn(9, 8)))
    with pytest.raises(InputError, match="another model"):
        take_tables(again, tmp_path)
    (tmp_path / SEAL).write_text("{}")
    with pytest.raises(InputError, match="export again"):
        take_tables(model, tmp_path)
