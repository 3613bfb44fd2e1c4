"""The search with bounds: an answer that is said to be exact is the full ranking's, with ties, filters and growth."""

import pytest
import torch

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.ranker import Ranker, pad
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.scoring.scorers import content
from llmcfsr_merlin.scoring.search import screen
from llmcfsr_merlin.scoring.search.bound_tables import extends, take_tables, write_tables
from llmcfsr_merlin.scoring.search.neighbours import find_neighbours, rounded_up
from tests.models import model_config, random_model

K, ITEMS = 8, 300
SCORERS = ("network", "content", "transitions", "repeats", "popularity")


def world(seed: int, weights: dict[str, float] | None = None, twins: bool = True):
    """A model of random weights over ITEMS items, some of which are the same: ties."""
    random = torch.Generator().manual_seed(seed)
    scorers = model_config(lexical_share=0.3).model_dump()["scorers"] | {"repeats": {}, "popularity": {}}
    scorers["content"]["match_itself"] = seed % 3 == 0
    config = ModelConfig(name="llm_cfsr", scorers=scorers)
    model = random_model(config, ITEMS + FIRST_ITEM, 12, lexical=8, seed=seed)
    scorers = model.scorers
    scorers["popularity"].log_counts.copy_(torch.rand(ITEMS + FIRST_ITEM, generator=random) * 3)
    scorers["transitions"].next_weights[torch.randint(FIRST_ITEM, ITEMS, (40,), generator=random)] = 0
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


@pytest.fixture(params=[1 << 26, 1 << 12], ids=["all axes", "few axes"])
def narrow(request, monkeypatch):
    monkeypatch.setattr(screen, "ROOM", request.param)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most", [9, 60, 299])
def test_what_is_said_to_be_exact_is_the_full_ranking(seed, most, narrow, monkeypatch):
    monkeypatch.setattr(content, "NEIGHBOURS", 12)
    model, histories = world(seed)
    exact, scores = Ranker(model).find(histories, K), Ranker(model).scores(histories)
    found = Ranker(model, shortlist=most).find(histories, K)
    same(found, exact, scores)
    if most == 299:
        assert found.exact.all()
    certain = Ranker(model, shortlist=most, uncertain="exact").find(histories, K)
    assert certain.exact.all()
    same(certain, exact, scores)


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
    before = Ranker(model, shortlist=100)
    before.find(histories, K)
    model.append_items(NewItems(20, torch.randn(20, 16), torch.randn(20, 8)))
    table = model.scorers["content"].neighbours
    again = find_neighbours(model.scorers["content"].units, table.items.shape[1])
    torch.testing.assert_close(table.cut, again.cut)
    assert torch.equal(table.items, again.items)
    found, exact = Ranker(model, shortlist=100).find(histories, K), Ranker(model).find(histories, K)
    same(found, exact, Ranker(model).scores(histories))
    assert found.exact.any()


def test_the_screen_is_never_below_the_product(narrow):
    for seed in range(5):
        torch.manual_seed(seed)
        columns = [torch.randn(900, 40) * torch.logspace(-2, 1, 40), torch.rand(900, 2), torch.zeros(900, 0)]
        query = [torch.randn(40) * torch.logspace(1, -2, 40), torch.randn(2), torch.zeros(0)]
        for product in (screen._float_product, screen._integer_product()):
            built = screen.Screen(columns)
            built._product = product or built._product
            exact = columns[0].double() @ query[0].double() + columns[1].double() @ query[1].double()
            over = built.upper(query)[FIRST_ITEM:] - exact[FIRST_ITEM:]
            assert (over >= 0).all()
        if screen.ROOM > 1 << 20:
            assert over.mean() < exact.std() * 0.2


def test_weights_of_16_bits_are_never_too_small():
    values = torch.cat([torch.randn(10_000), torch.tensor([0.0, 1.0, -1.0, 1e-8, -1e-8])])
    assert (rounded_up(values).float() >= values).all() and (rounded_up(values).float() - values).max() < 4e-3


def test_a_table_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    units = torch.nn.functional.normalize(torch.randn(200, 16), dim=1)
    units[:FIRST_ITEM] = 0
    monkeypatch.setattr("llmcfsr_merlin.scoring.search.neighbours._ROOM", 50 * 200)

    def stop(done, of):
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_neighbours(units, 10, folder=tmp_path, report=stop)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 3
    found = find_neighbours(units, 10, folder=tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    plain = find_neighbours(units, 10)
    assert torch.equal(found.items, plain.items) and torch.equal(found.cut, plain.cut)


def test_cells_find_most_neighbours_and_prove_nothing(monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.scoring.search.cells._SIZE", 40)
    monkeypatch.setattr("llmcfsr_merlin.scoring.search.cells._PROBES", 4)
    torch.manual_seed(0)
    centres = torch.randn(12, 16)
    units = torch.nn.functional.normalize(centres[torch.arange(600) % 12] + 0.4 * torch.randn(600, 16), dim=1)
    units[:FIRST_ITEM] = 0
    rough, exact = find_neighbours(units, 10, most=100), find_neighbours(units, 10)
    assert not rough.proven[FIRST_ITEM:].any() and exact.proven.all()
    same = [len(set(a) & set(b)) for a, b in zip(rough.items[3:].tolist(), exact.items[3:].tolist())]
    assert sum(same) > 0.95 * 10 * 597


def test_what_is_not_proven_is_not_called_exact():
    model, histories = world(5, {"content": 3.0, "content_cold": 1.0, "transitions": 0.5})
    ranker = Ranker(model, shortlist=250)
    assert ranker.find(histories, K).exact.all()
    with torch.inference_mode():
        model.scorers["content"].neighbours.proven[int(histories[1, 0])] = False
    found = ranker.find(histories, K)
    assert not found.exact[1] and found.exact.any()


def test_tables_are_read_again_and_extended(tmp_path):
    model, _ = world(6, {"content": 3.0, "content_cold": 1.0, "transitions": 0.5})
    write_tables(model, tmp_path, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    again, _ = world(6, {"content": 3.0, "content_cold": 1.0, "transitions": 0.5})
    assert take_tables(again, tmp_path) and not take_tables(again, tmp_path / "nowhere")
    assert torch.equal(again.scorers["content"].neighbours.items, model.scorers["content"].neighbours.items)
    grown, _ = world(6, {"content": 3.0, "content_cold": 1.0, "transitions": 0.5})
    grown.append_items(NewItems(9, torch.randn(9, 16), torch.randn(9, 8)))
    assert extends(grown, again) and not extends(again, grown)
    (tmp_path / "grown").mkdir()
    write_tables(grown, tmp_path / "grown", tmp_path / "scratch", again)
    assert take_tables(grown, tmp_path / "grown")
    plain = find_neighbours(grown.scorers["content"].units, content.NEIGHBOURS)
    assert torch.equal(grown.scorers["content"].neighbours.items, plain.items)
    with pytest.raises(InputError, match="another model"):
        take_tables(grown, tmp_path)
