"""Score weights are calibrated for the ranking that the recipe asks for, and for the tail."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import Ranker, pad
from llmcfsr_merlin.training import calibration, candidates
from llmcfsr_merlin.training.calibration import ValidationBatches, calibrate, climb, ndcg, trade, validation_ranks
from tests.models import model_config, random_model
from tests.unit.scoring.test_transitions import write

ITEMS, TWINS, LENGTH, USERS = 32, 8, 12, 40
REPEATS = ("repeat", "repeat_times", "repeat_recent")
GRID = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)


class Rows(list):
    """Rows as one validation batch; a row's last item is the one to find."""

    def __iter__(self):
        yield pad([row[:-1] for row in super().__iter__()], 99), torch.tensor([row[-1] for row in super().__iter__()])


def quiet(vectors: torch.Tensor, counts: torch.Tensor, follow: bool = False, repeats: bool = False) -> Ensemble:
    """A model whose network is noise, far below a difference of cosines; weights as before calibration."""
    config = model_config(hidden=8, pca_init=False, transition_neighbours=5 if follow else 0)
    if repeats:
        config = ModelConfig(scorers={**config.scorers, "repeats": {}})
    model = random_model(config, len(vectors), 50, vectors.shape[1], counts=counts)
    model.vectors.semantic.copy_(vectors)
    with torch.no_grad():
        for weight in model.scorers["network"].parameters():
            weight.mul_(0.01)
    model.set_weights({name: 0.0 for name in model.weights if name != "network"})
    return model


def test_the_text_is_used_under_both_rules_and_repeats_pay_for_what_is_not_bought_again():
    """After 12 items comes the twin of the first one. Items of a history that are twins of each other match better:
    the kept rule pushes them down by a weight of their own, not by giving up the text.
    """
    random = torch.Generator().manual_seed(0)
    texts = torch.eye(ITEMS)
    twins = 0.9 * texts[:TWINS] + 0.1 * texts[TWINS : 2 * TWINS]
    vectors = torch.cat([torch.zeros(FIRST_ITEM, ITEMS), texts, twins])
    model = quiet(vectors, torch.ones(len(vectors), dtype=torch.long), repeats=True)
    rows = Rows()
    for _ in range(USERS):
        others = 2 * TWINS + torch.randperm(ITEMS - 2 * TWINS, generator=random)[: LENGTH - 3]
        first, second = torch.randperm(TWINS, generator=random)[:2].tolist()
        rows.append([FIRST_ITEM + item for item in (first, second, *others.tolist(), second + ITEMS, first + ITEMS)])

    both = []
    for exclude_history in (True, False):
        found = calibrate(model, rows, np.zeros(len(vectors), bool), exclude_history=exclude_history)
        assert found == model.weights and found["network"] == 1
        assert found == model.history_weights["masked" if exclude_history else "kept"]
        both.append(model.history_weights)
    assert both[0] == both[1], "each rule gets the same weights, whichever is served"
    assert all(weights["content"] + weights["content_cold"] > 0 for weights in both[0].values())
    masked, kept = (sum(both[0][rule][name] for name in REPEATS) for rule in ("masked", "kept"))
    assert kept < 0 == masked


def test_people_who_return_are_learned_and_the_masked_rule_has_no_part_in_it():
    """Everybody goes back to the first of five items; alone among masked ones, a target would win by any weight."""
    vectors = torch.cat([torch.zeros(FIRST_ITEM, ITEMS), torch.eye(ITEMS)])
    model = quiet(vectors, torch.ones(len(vectors), dtype=torch.long), repeats=True)
    random = torch.Generator().manual_seed(0)
    rows = Rows((FIRST_ITEM + torch.randperm(ITEMS, generator=random)[:5]).tolist() for _ in range(USERS))
    for row in rows.copy():
        row.append(row[0])
    calibrate(model, rows, np.zeros(len(vectors), bool))
    masked, kept = (model.history_weights[rule] for rule in ("masked", "kept"))
    assert [masked[name] for name in REPEATS] == [0, 0, 0]
    assert kept["repeat"] > 0 or kept["repeat_recent"] < 0
    _, ranks = validation_ranks(model.prepare(), rows, [tuple(kept.values())])
    assert ndcg(ranks["kept"])[0] > 0.4


def test_few_tail_items_decide_nothing():
    found = [chosen_for_twins(users, 0.3)[0] for users in (4 * ITEMS, 20 * ITEMS)]
    assert found[0] == chosen_for_twins(4 * ITEMS, 0.0)[0] != found[1]


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_what_may_be_given_up_goes_to_the_tail(tolerance):
    chosen, model, rows, tail = chosen_for_twins(20 * ITEMS, tolerance)
    tried = [(1.0, weight, 0.0) for weight in GRID] + [tuple(chosen.values())]
    targets, found = validation_ranks(model.prepare(), rows, tried)
    ranks = found["masked"]
    quality = ndcg(ranks)
    assert quality[-1] >= (1 - tolerance) * quality.max() - 1e-9
    of_tail = ndcg(ranks[:, tail[targets]])
    plain = of_tail[:-1][quality[:-1] == quality[:-1].max()].max()
    assert (of_tail[-1] > plain) == (tolerance > 0)


def chosen_for_twins(users: int, tolerance: float):
    """Every item has a popular and a rare twin, equally close to it; most users go on to the popular one."""
    texts = torch.eye(ITEMS)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, ITEMS), texts, 0.9 * texts + 0.1, 0.9 * texts + 0.1])
    counts = torch.cat([torch.full((FIRST_ITEM + 2 * ITEMS,), 500), torch.ones(ITEMS, dtype=torch.long)])
    model = quiet(vectors, counts)
    rows = Rows(
        [FIRST_ITEM + user % ITEMS, FIRST_ITEM + user % ITEMS + (2 if user % 5 == 0 else 1) * ITEMS]
        for user in range(users)
    )
    tail = (counts < 4).numpy()
    return calibrate(model, rows, tail, tolerance, exclude_history=True), model, rows, tail


def test_items_that_training_never_saw_get_a_weight_for_what_it_may_cost():
    """Where 3 leads to 4, one in ten goes on to 5, which no training saw and whose text is almost that of 4."""
    vectors = torch.zeros(12, 8)
    vectors[3:] = torch.eye(9)[:, :8]
    vectors[5] = 0.9 * vectors[4] + 0.1 * vectors[6]
    counts = torch.full((12,), 9)
    counts[5] = 0
    rows = Rows([[3, 5 if user % 10 == 0 else 4] for user in range(100)] + [[6, 7], [7, 8], [8, 9], [9, 6]])

    def weight(tolerance: float) -> tuple[float, float]:
        model = quiet(vectors, counts, follow=True)
        table = model.scorers["transitions"]
        table.next_items.zero_()
        table.next_weights.zero_()
        for first, second in ((3, 4), (4, 3), (6, 7), (7, 8), (8, 9), (9, 6), (10, 11), (11, 10)):
            table.next_items[first, 0], table.next_weights[first, 0] = second, 0.1
        found = calibrate(model, rows, counts.numpy() < 1, 0.0, True, counts.numpy() == 0, tolerance)
        point = tuple(found.values())
        targets, ranks = validation_ranks(model.prepare(), rows, [point])
        return found["transitions_borrowed"], ndcg(ranks["masked"][0][targets == 5])

    free, bought = weight(0.0), weight(0.5)
    assert 0 <= free[0] < bought[0] and free[1] < bought[1] == 1


@pytest.mark.parametrize("repeats", [{}, {"repeat": -2.0, "repeat_times": 4.0, "repeat_recent": 1.0}, {"repeat": 9.0}])
def test_validation_ranks_by_the_scores_that_are_served(repeats):
    random = torch.Generator().manual_seed(1)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, 8), torch.randn(ITEMS, 8, generator=random)])
    model = quiet(vectors, torch.randint(0, 9, (len(vectors),), generator=random), follow=True, repeats=True)
    rows = (FIRST_ITEM + torch.randint(0, ITEMS // 3, (40, 6), generator=random)).tolist()  # half of the targets return
    weights = {"network": 1.0, "content": 2.0, "content_cold": 3.0, "transitions": 1.5} | repeats
    point = tuple(weights.get(name, 0.0) for name in model.weights)
    others = tuple(weight if name not in REPEATS else 0.5 for name, weight in zip(model.weights, point))
    targets, found = validation_ranks(model.prepare(), Rows(rows), [others, point, others])
    model.set_weights(weights)
    scores = Ranker(model).scores(torch.tensor(rows)[:, :-1])
    above = scores > scores.gather(1, torch.tensor(targets)[:, None])
    assert found["kept"][1].tolist() == above.sum(1).tolist()
    without = [
        ITEMS - 1 if row[-1] in row[:-1] else int(one.sum() - one[list(set(row[:-1]))].sum())
        for one, row in zip(above, rows)
    ]
    assert found["masked"][1].tolist() == without and ITEMS - 1 in without


def drawn(seed: int = 1) -> tuple[Ensemble, Rows, np.ndarray]:
    """A model of random vectors and transitions, rows that go on to the ninth best item by two features, and a tail."""
    random = torch.Generator().manual_seed(seed)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, 8), torch.randn(300, 8, generator=random)])
    model = quiet(vectors, torch.randint(0, 9, (len(vectors),), generator=random), follow=True, repeats=True)
    rows = FIRST_ITEM + torch.randint(0, 300, (200, 6), generator=random)
    model.set_weights({"content": 2.0, "transitions": 0.5})
    rows[:, -1] = Ranker(model).top_k(rows[:, :-1], 9)[0][:, -1]
    return model, Rows(rows.tolist()), np.arange(len(vectors)) % 2 == 0


@pytest.mark.parametrize("kept", [1, 10, 1000])
def test_ranks_among_candidates_are_at_most_those_among_all_items(kept, monkeypatch):
    monkeypatch.setattr(candidates, "KEPT", kept)
    model, rows, _ = drawn()
    model.prepare()
    point = (1.0, 2.0, 3.0, 1.5, *(0.5,) * (len(model.features) - 4))
    found = candidates.Candidates(model, rows)
    targets, whole = validation_ranks(model, rows, [point])
    among = validation_ranks(found, found, [point])[1]
    assert (found.targets == targets).all() and (among["kept"] <= whole["kept"]).all()
    not_repeated = whole["masked"][0] < whole["masked"].max()
    assert (among["masked"] <= whole["masked"])[:, not_repeated].all()
    assert kept == 1000 or (among["kept"] < whole["kept"]).any()
    # By the sum that is asked for, the first that many are there.
    found = candidates.Candidates(model, rows, [point])
    among = validation_ranks(found, found, [point])[1]
    first = whole["kept"] < kept
    assert kept == 1 or first.any()
    assert (among["kept"] == whole["kept"])[first].all()


def test_what_the_candidates_missed_joins_them(monkeypatch):
    monkeypatch.setattr(candidates, "KEPT", 2)
    made = []

    class Noted(candidates.Candidates):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(calibration, "Candidates", Noted)
    model, rows, tail = drawn()
    calibrate(model, rows, tail)
    chosen = [tuple(model.history_weights[rule].values()) for rule in ("masked", "kept")]
    _, whole = validation_ranks(model.prepare(), rows, chosen)
    first, last = (validation_ranks(one, one, chosen)[1] for one in (made[0], made[-1]))
    assert 1 < len(made) <= 3
    for place, rule in enumerate(("masked", "kept")):
        assert ndcg(first[rule][place]) > ndcg(last[rule][place]) >= ndcg(whole[rule][place])


def test_batches_hold_every_row_once_in_any_cut(tmp_path):
    rows = [list(range(3, 5 + number % 7)) for number in range(50)]
    files = [write(tmp_path / "a.parquet", rows[:20]), write(tmp_path / "b.parquet", rows[20:])]
    for size in (1, 8, 100):
        found = []
        for histories, targets in ValidationBatches(files, size, torch.device("cpu")):
            assert len(histories) == len(targets) <= size
            pairs = zip(histories.tolist(), targets.tolist())
            found += [[item for item in row if item] + [last] for row, last in pairs]
        assert sorted(found) == sorted(rows)


def test_the_trade_follows_an_edge_along_which_one_weight_gives_for_another():
    class Edge:
        def __init__(self):
            self.values = {}

        def measure(self, points):
            for point in points:
                overall = 1.0 if point[1] + point[2] == 4 else 0.5
                self.values[point] = SimpleNamespace(overall=overall, tail=point[2])

    edge, grid = Edge(), (0.0, 1.0, 2.0, 3.0, 4.0)
    edge.measure([(1.0, 4.0, 0.0)])
    assert trade(edge, [(), grid, grid], 0.01) == (1.0, 0.0, 4.0)


def test_two_weights_against_each_other_are_found_where_neither_is_better_alone():
    class Ridge:
        def __init__(self):
            self.values = {}

        def measure(self, points):
            for point in points:
                overall = -abs(point[1] + point[2]) - 0.1 * abs(point[1] - 4)
                self.values[point] = SimpleNamespace(overall=overall, tail=0.0)

    grid = (-4.0, -2.0, 0.0, 2.0, 4.0)
    assert climb(Ridge(), [(), grid, grid, grid], (1.0, 0.0, 0.0, 0.0)) == (1.0, 0.0, 0.0, 0.0)
    assert climb(Ridge(), [(), grid, grid, grid], (1.0, 0.0, 0.0, 0.0), (1, 2)) == (1.0, 4.0, -4.0, 0.0)
    assert climb(Ridge(), [(), (), grid, grid], (1.0, 0.0, 0.0, 0.0), (1, 2)) == (1.0, 0.0, 0.0, 0.0)
