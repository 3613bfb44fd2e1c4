"""Each scorer against a few lines of plain arithmetic, and what all of them keep."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.scorer_settings import SCORERS, RepeatSettings
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.scoring.scorers import transitions
from llmcfsr_merlin.scoring.scorers.content import _of_catalogue_on_gpu
from llmcfsr_merlin.scoring.scorers.repeats import RepeatScorer
from tests.models import model_config, random_model
from tests.unit.scoring.test_network import DIMENSION, LENGTH, ROWS, build, histories


def test_transitions_are_summed_with_the_age_of_the_item():
    scorer = build().scorers["transitions"]
    scorer.next_items.zero_()
    scorer.next_weights.zero_()
    scorer.next_items[5, :2], scorer.next_weights[5, :2] = torch.tensor([9, 30]).int(), torch.tensor([0.5, 0.125])
    scorer.next_items[8, :1], scorer.next_weights[8, :1] = 30, 0.25
    scorer.next_cosines.zero_()
    rows = histories([5, 8], [8, 7, 5, 4], [7])
    found, borrowed, _ = scorer(rows)
    wanted = torch.zeros(3, ROWS)
    wanted[0, 9], wanted[0, 30] = 0.8 * 0.5, 0.8 * 0.125 + 0.25
    wanted[1, 9], wanted[1, 30] = 0.8 * 0.5, 0.8 * 0.125 + 0.8**3 * 0.25
    torch.testing.assert_close(found, torch.log1p(100 * wanted))
    assert scorer.bound(rows).keys.tolist() == [9, 30, ROWS + 9, ROWS + 30], "row by row, each item once"
    # 5 and 8 alone have transitions, and nothing led to them: there is nothing to borrow.
    assert not borrowed.any()


def test_cosines_of_distinct_items_are_summed_wherever_they_stand():
    model = build()
    scorer = model.scorers["transitions"]
    for table in (scorer.next_items, scorer.next_weights, scorer.next_cosines):
        table.zero_()
    for first, place, second, cosine in ((5, 0, 9, 0.5), (5, 1, 30, 0.125), (8, 0, 30, 0.25)):
        scorer.next_items[first, place], scorer.next_cosines[first, place] = second, cosine
    scorer.next_weights[scorer.next_cosines > 0] = 0.01
    rows = histories([5, 8], [8, 7, 5, 4], [5, 8, 5, 5], [7])
    wanted = torch.zeros(4, ROWS)
    wanted[:3, 9], wanted[:3, 30] = 0.5, 0.375
    own, _, found = scorer(rows)
    torch.testing.assert_close(found, wanted)
    for weights in ({"transitions": 0.0, "co_occurrence": 4.0}, {"transitions": 2.0, "co_occurrence": 4.0}):
        model.set_weights(weights | {"transitions_borrowed": 0.0})
        score = weights["transitions"] * own + 4 * wanted
        torch.testing.assert_close(scorer.weighted(rows), score)
        torch.testing.assert_close(scorer.of_span(rows, slice(7, 31)), score[:, 7:31])
        bound = scorer.bound(rows)
        torch.testing.assert_close(bound.lifts, score[score > 0])
        of_features = [weights["transitions"], 0.0, 4.0], [1.0, 0.0, 0.0]
        for found, expected in zip(scorer.weighted_by(of_features, rows), (score, own)):
            torch.testing.assert_close(found, expected)


def test_an_item_of_the_history_gets_nothing_from_steps_that_were_its_users_own():
    """5 leads to 9 and to 8, 8 leads to 5; 7 has no transitions and borrows those of 8, which it is like."""
    model = build()
    scorer, vectors = model.scorers["transitions"], model.vectors.semantic
    for table in (scorer.next_items, scorer.next_weights, scorer.next_cosines, vectors):
        table.zero_()
    for first, place, second in ((5, 0, 9), (5, 1, 8), (8, 0, 5)):
        scorer.next_items[first, place], scorer.next_weights[first, place] = second, 0.1
        scorer.next_cosines[first, place] = 0.5
    vectors[7:9, 0] = 1
    model.set_weights({"transitions": 2.0, "transitions_borrowed": 1.0, "co_occurrence": 4.0})
    rows = histories([5, 8], [5, 7], [8])
    found = scorer(rows)
    assert found[0].nonzero().tolist() == found[2].nonzero().tolist() == [[0, 9], [1, 8], [1, 9], [2, 5]]
    # In the first row 8 is followed by nothing but itself, which lends all the same; in the second 7 is there itself.
    assert found[1].nonzero().tolist() == [[0, 7]]
    scores = scorer.weighted(rows)
    torch.testing.assert_close(scores, torch.einsum("f,fbv->bv", scorer.weights, found))
    torch.testing.assert_close(scorer.weighted_by([scorer.weights.tolist()], rows)[0], scores)
    items = torch.arange(3, 12)
    torch.testing.assert_close(scorer.weighted(rows, items.expand(3, -1)), scores[:, items])
    bound = scorer.bound(rows)
    for row, history in enumerate(rows):
        torch.testing.assert_close(scorer.rescore(bound, row, history[None], items), scores[row, items])
    model.set_weights({"transitions_borrowed": 0.0})
    torch.testing.assert_close(scorer.of_span(rows, slice(6, 10)), scorer.weighted(rows)[:, 6:10])
    scorer.settings = scorer.settings.model_copy(update={"score_history": True})
    assert scorer.weighted(rows)[0, 5] and scorer.weighted(rows)[0, 8], "as models of before"


def test_cosines_count_where_the_weight_of_a_transition_has_decayed_to_nothing():
    model = build()
    scorer = model.scorers["transitions"]
    for table in (scorer.next_items, scorer.next_weights, scorer.next_cosines):
        table.zero_()
    scorer.next_items[5, :2], scorer.next_weights[5, :2] = torch.tensor([9, 30]).int(), 0.01
    scorer.next_cosines[5, :2] = torch.tensor([0.5, 0.125])
    rows = torch.full((1, 800), 7)
    rows[0, 0] = 5
    model.set_weights({"transitions": 2.0, "transitions_borrowed": 0.0, "co_occurrence": 4.0})
    bound = scorer.bound(rows)
    assert bound.keys.tolist() == [9, 30]
    torch.testing.assert_close(bound.lifts, torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(scorer.weighted(rows)[0, [9, 30]], bound.lifts)


def test_items_without_transitions_borrow_those_of_their_nearest_items_by_hand():
    """3 leads to 4, 5 to 3, and 4 to 5; 6 is like 4 and a little like 5, 7 has no vector."""
    model = build()
    scorer, vectors = model.scorers["transitions"], model.vectors.semantic
    for table in (scorer.next_items, scorer.next_weights, vectors):
        table.zero_()
    for first, second, weight in ((3, 4, 0.5), (5, 3, 0.25), (4, 5, 0.125)):
        scorer.next_items[first, 0], scorer.next_weights[first, 0] = second, weight
    vectors[3:7, :3] = torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 1, 0], [0.8, 0.6, 0]])
    model.set_weights({"transitions": 2.0, "transitions_borrowed": 3.0})
    own, borrowed, cosines = scorer(histories([3], [4], [5], [3, 4]))
    lent = [math.log1p(50), 0.6 / 0.8 * math.log1p(12.5), 0, None]
    for row, wanted in enumerate(lent[:3]):
        torch.testing.assert_close(borrowed[row, 6], torch.tensor(0.8 * wanted))
    four, five = math.log1p(0.8 * 50), math.log1p(12.5)
    torch.testing.assert_close(borrowed[3, 6], torch.tensor(max(0.8 * four, 0.6 * five)))
    assert not borrowed[:, [3, 4, 5, 7]].any() and not own[:, 6].any()
    rows = histories([3], [4], [5], [3, 4])
    torch.testing.assert_close(scorer.weighted(rows), 2 * own + 3 * borrowed)
    items = torch.tensor([[6, 4, 7]] * 4)
    features = torch.stack([own, borrowed, cosines])
    torch.testing.assert_close(scorer(rows, items), features.gather(2, items.expand(3, -1, -1)))
    torch.testing.assert_close(scorer.weighted(rows, items), (2 * own + 3 * borrowed).gather(1, items))
    model.append_items(NewItems(1, vectors[4:5].clone()))
    torch.testing.assert_close(scorer(rows)[1][:, ROWS], scorer._own(rows)[:, 4])
    torch.testing.assert_close(scorer(rows)[1][:, :ROWS], borrowed)


def borrowing(lexical: int | None = None, **settings):
    """A model of 40 items in which every fifth has no transitions, and its transition scorer."""
    model = random_model(model_config(**settings), 43, LENGTH, 8, lexical)
    scorer = model.scorers["transitions"]
    scorer.next_weights[3::5] = 0
    model.set_weights({"transitions": 1.0, "transitions_borrowed": 1.0})
    return model, scorer


def test_many_items_without_transitions_search_few_lenders_and_are_scored_in_pieces(monkeypatch, caplog):
    _, scorer = borrowing()
    rows = histories([4, 5], [6], [7, 9, 11])
    wanted = scorer(rows)[1]
    monkeypatch.setattr(transitions, "_PIECE", 3)
    torch.testing.assert_close(scorer(rows)[1], wanted)
    known = (scorer.next_weights > 0).sum(1)
    scorer.next_weights[known.argsort()[: len(known) // 2], 1:] = 0  # half of the lenders know little
    known = (scorer.next_weights > 0).sum(1)
    monkeypatch.setattr(transitions, "_PAIRS", 1)
    monkeypatch.setattr(transitions, "_FEWEST", 12)
    scorer.prepare()
    with caplog.at_level("INFO"):
        without, near, _ = scorer._nearest()
    assert len(without) == 8 and len(near.unique()) <= 12
    assert known[near].min() >= known.sort(descending=True).values[11]
    assert "8 items without transitions borrow from the 12 of 32" in caplog.text


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_borrowing_compares_texts_by_the_share_of_the_recipe(share):
    model, scorer = borrowing(lexical=6, lexical_share=share)
    without, near, cosines = scorer.borrowers
    units = [torch.nn.functional.normalize(kind, dim=1) for kind in (model.vectors.semantic, model.vectors.lexical)]
    wanted = (1 - share) * units[0][without] @ units[0].T + share * units[1][without] @ units[1].T
    torch.testing.assert_close(cosines, wanted.gather(1, near).clamp_min(0))


CONTENT_HISTORIES = histories([5, 9, 30], [7], [], [5, 5, 8, 2], list(range(20, 32)), [9, 9], [2, 5])


def plain_content(scorer, rows):
    """Largest cosine of each item to the *other* real items of each history, pair by pair."""
    unit, found = scorer.units, torch.zeros(len(rows), ROWS)
    for row, history in enumerate(rows.tolist()):
        for item in range(FIRST_ITEM, ROWS):
            others = [code for code in history if code >= FIRST_ITEM]
            if not scorer.settings.match_itself:
                others = [code for code in others if code != item]
            found[row, item] = max((float(unit[item] @ unit[code]) for code in others), default=0.0)
    return found


@pytest.mark.parametrize("itself", [False, True])
def test_content_is_the_largest_cosine_to_other_items_of_the_history_in_every_way_to_compute_it(itself):
    scorer = build(lexical=8).scorers["content"]
    scorer.settings = scorer.settings.model_copy(update={"match_itself": itself})
    wanted = plain_content(scorer, CONTENT_HISTORIES)
    real = slice(FIRST_ITEM, None)
    plain, cold = scorer(CONTENT_HISTORIES)
    torch.testing.assert_close(plain[:, real], wanted[:, real])
    torch.testing.assert_close(cold, plain * scorer.coldness)
    every = torch.arange(ROWS).expand(len(CONTENT_HISTORIES), ROWS)
    torch.testing.assert_close(scorer(CONTENT_HISTORIES, every)[0][:, real], wanted[:, real])
    torch.testing.assert_close(scorer.cosine(CONTENT_HISTORIES)[:, real], wanted[:, real])
    graph = scorer.graph()(CONTENT_HISTORIES) / scorer.item_weights()
    torch.testing.assert_close(graph[:, real], wanted[:, real])
    matched = scorer.match(CONTENT_HISTORIES, every)  # what an explanation names is what the score comes from
    assert itself or not ((matched == every) & (matched > 0)).any()
    torch.testing.assert_close((scorer.units[matched] * scorer.units).sum(-1)[:, real], wanted[:, real])
    scorer.prepare(bulk=True)
    torch.testing.assert_close(scorer(CONTENT_HISTORIES)[0][:, real], wanted[:, real])


def test_an_item_of_the_history_is_scored_by_the_others_by_hand():
    """Five items: 4 is 3's twin, 5 and 6 share half of it, 7 has no vector."""
    scorer = build().scorers["content"]
    scorer.vectors.semantic.zero_()
    for item, vector in ((3, (1, 0)), (4, (1, 0)), (5, (1, 1)), (6, (1, -1))):
        scorer.vectors.semantic[item, :2] = torch.tensor(vector).float()
    half = 0.5**0.5
    found = scorer(histories([3, 5], [3, 4], [3], [7, 3], [3, 3]))[0][:, 3:8]
    wanted = [
        [half, 1, half, half, 0],  # 3 by 5, 5 by 3
        [1, 1, half, half, 0],  # twins by each other
        [0, 1, half, half, 0],  # nothing but itself
        [0, 1, half, half, 0],  # an item without a vector says nothing, and has nothing said of it
        [0, 1, half, half, 0],  # bought twice is no second item
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))


@pytest.mark.parametrize("room", [1, 1 << 20])
def test_content_by_segments_as_on_a_gpu(room):
    scorer = build(lexical=8).scorers["content"]
    scorer.settings = scorer.settings.model_copy(update={"match_itself": True})
    every = histories([2, 9, 30], [7], [], list(range(20, 32)), [5, 5, 2])
    for rows in (every, every[:1], every[1:2], every[2:3], every[[2, 2]]):
        found = _of_catalogue_on_gpu(rows, rows >= FIRST_ITEM, scorer.units, scorer._units_of, room)
        torch.testing.assert_close(found, scorer.cosine(rows))


def test_repeats_by_hand():
    """Whether, how often and how long ago: five items, one of them twice."""
    scorer = RepeatScorer(RepeatSettings(), Shape(8, LENGTH), None)
    rows = histories([3, 4, 3, 5], [6], [], [2, 7])
    is_in, times, recent = scorer(rows)[:, :, 3:]
    torch.testing.assert_close(
        is_in, torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0] * 5, [0, 0, 0, 0, 1]]).float()
    )
    wanted = torch.zeros(4, 5)
    wanted[0, 0] = math.log(2)
    torch.testing.assert_close(times, wanted)
    ages = [[0.8, 0.64, 1, 0, 0], [0, 0, 0, 1, 0], [0] * 5, [0, 0, 0, 0, 1]]
    torch.testing.assert_close(recent, torch.tensor(ages))
    scorer.weights.copy_(torch.tensor([-2.0, 3.0, 1.5]))
    torch.testing.assert_close(scorer.weighted(rows)[:, 3:], -2 * is_in + 3 * times + 1.5 * recent)
    every = torch.arange(8).expand(4, 8)
    torch.testing.assert_close(scorer(rows, every)[:, :, 3:], scorer(rows)[:, :, 3:])
    assert scorer.bound(rows).keys.tolist() == [3, 4, 5, 8 + 6, 3 * 8 + 7]


def test_the_content_score_is_the_mean_of_both_cosines_by_the_share():
    history = histories([9])  # of one item, so that the largest cosine is the only one
    model = build(lexical=8, lexical_share=0.3)
    scorer = model.scorers["content"]
    model.vectors.lexical[20] = 0  # no word that another item has
    words = F.normalize(model.vectors.lexical, dim=-1)
    alone = F.normalize(model.vectors.semantic, dim=-1)
    wanted = 0.7 * alone @ alone[9] + 0.3 * words @ words[9]
    others = torch.arange(ROWS) != 9
    torch.testing.assert_close(scorer.cosine(history)[0][others], wanted[others])
    torch.testing.assert_close(wanted[20], 0.7 * alone[20] @ alone[9])
    for share, expected in ((0.0, alone @ alone[9]), (1.0, words @ words[9])):
        scorer.settings = scorer.settings.model_copy(update={"lexical_share": share})
        scorer.prepare()
        torch.testing.assert_close(scorer.cosine(history)[0][others], expected[others])


def every_scorer():
    """A model of all built-in scorers that a file can describe without data."""
    settings = {name: {} for name in SCORERS if name not in ("item_knn", "ease")}
    config = ModelConfig(name="all", scorers=settings | {"network": {"hidden": 16, "views": ["semantic"]}})
    model = random_model(config, ROWS, LENGTH, DIMENSION, lexical=4)
    model.scorers["popularity"].log_counts.copy_(torch.rand(ROWS))
    model.set_weights({"popularity": 0.5, "transitions": 0.5, "transitions_borrowed": 2.0})
    model.set_weights({"repeat": -1.0, "repeat_times": 2.0, "repeat_recent": 0.5})
    return model


def test_scores_of_given_items_are_those_of_the_catalogue():
    model = every_scorer()
    history, items = histories([5, 9, 30], [7, 7, 13]), torch.tensor([[10, 9, 40], [12, 13, 0]])
    torch.testing.assert_close(torch.stack(model.each_feature(history, items)), torch.stack(
        [feature.gather(1, items) for feature in model.each_feature(history)]
    ))  # fmt: skip
    scores = model.scores(history, items)
    torch.testing.assert_close(scores[:, :2], model.scores(history).gather(1, items)[:, :2])
    assert scores[1, 2] == -torch.inf, "a reserved row"


def test_an_explanation_sums_to_the_score():
    model = every_scorer()
    history, items = histories([5, 9, 30]), torch.tensor([[10, 11, 40]])
    shares = model.explain(history, items)
    assert list(shares) == [feature.feature.name for feature in model.features]
    assert shares["repeat"].tolist() == [[0, 0, 0]] and shares["transitions"].any()
    assert model.explain(history, torch.tensor([[30, 11, 40]]))["repeat"].tolist() == [[-1, 0, 0]]
    torch.testing.assert_close(sum(shares.values()), model.scores(history, items))


@pytest.mark.parametrize("form", ["eager", "traced", "onnx"])
def test_the_graph_scores_as_the_model_does(form, tmp_path):
    model = every_scorer()
    graph = model.graph(4).eval()
    example = histories(list(range(3, 15)), [7])
    others = F.pad(histories([5, 9, 30], [7], [8, 8, 9], [52, 8, 52]), (0, LENGTH - 3))
    with torch.no_grad():
        if form == "traced":
            graph = torch.jit.trace(graph, example, check_trace=False)
        if form == "onnx":
            graph = onnx_session(graph, example, tmp_path / "model.onnx")
        for rows in (example, others):
            torch.testing.assert_close(
                graph(rows)[:, FIRST_ITEM:], model.scores(rows)[:, FIRST_ITEM:], rtol=1e-4, atol=1e-4
            )


def onnx_session(graph, example, path):
    onnxruntime = pytest.importorskip("onnxruntime")
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    names = {"input_names": ["codes"], "output_names": ["scores"], "dynamic_axes": {"codes": {0: "rows"}}}
    torch.onnx.export(graph, example, str(path), opset_version=17, **names, **older)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda rows: torch.from_numpy(session.run(None, {"codes": rows.numpy()})[0])


def test_growth_leaves_old_scores_alone_and_scores_new_items_by_their_text():
    model = every_scorer()
    history = histories([5, 9, 30], [7])
    before = model.scores(history)
    twin = NewItems(2, model.vectors.semantic[[5, 40]], model.vectors.lexical[[5, 40]])
    model.append_items(twin)
    after = model.prepare().scores(history)
    torch.testing.assert_close(after[:, :ROWS], before, rtol=1e-5, atol=1e-5)
    assert after[0, ROWS] > after[0, ROWS + 1], "the twin of an item of the history"
    assert model.prepare(bulk=True).scores(histories([ROWS, 5]))[0, ROWS] > after[0, ROWS + 1], "scored by its twin"
    assert model.shape.n_items == ROWS + 2
    Ranker(model).top_k(histories([ROWS, ROWS + 1]), 5)
