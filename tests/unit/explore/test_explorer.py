"""What the page shows equals what the library says, without a browser."""

import numpy as np
import pytest

from llmcfsr_merlin.dataset.names import KEPT, MASKED
from llmcfsr_merlin.evaluation.cases import write_cases
from llmcfsr_merlin.evaluation.ranks import RANK, rank_users
from llmcfsr_merlin.explore.answers import Recommended
from llmcfsr_merlin.explore.explorer import Explorer, bars
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError


def test_a_list_is_what_the_library_recommends_and_explains(run, explorer):
    session = explorer.session()
    session.history = ["i0004", "i0009", "i0014"]
    cards = explorer.cards(session)
    assert [card.label for card in cards] == ["model0", "model1"]
    recommender = Recommender.load(run)
    found = recommender.answer([session.history], 10)
    reasons = recommender.explain(session.history, found.items[0])
    rows = cards[0].rows
    assert [row.item for row in rows] == found.items[0].tolist()
    np.testing.assert_allclose([row.score for row in rows], found.scores[0], rtol=1e-6)
    titles = [explorer.items.title_of(reason.match) for reason in reasons]
    assert [row.match for row in rows] == titles and titles[0].startswith(("Aurora", "Borealis", "Cirrus", "Dune"))
    for row, reason in zip(rows, reasons):
        assert {part.feature: part.share for part in row.bar} == pytest.approx(reason.shares)
        assert sum(part.share for part in row.bar) == pytest.approx(row.score, rel=1e-4)


def test_changed_weights_change_the_list_of_that_model_alone(run, explorer):
    session = explorer.session()
    session.history = ["i0004", "i0009", "i0014"]
    before = explorer.cards(session)
    weights = explorer.runs[0].model.weights(False) | {"content": 30.0}
    session.weights["model0"] = weights
    after = explorer.cards(session)
    assert after[0].changed and not after[1].changed
    assert after[1].rows == before[1].rows and after[0].rows != before[0].rows
    recommender = Recommender.load(run)
    recommender.ranker.model.set_weights(weights)
    found = recommender.answer([session.history], 10)
    assert [row.item for row in after[0].rows] == found.items[0].tolist()
    reasons = recommender.explain(session.history, found.items[0])
    assert {part.feature: part.share for part in after[0].rows[0].bar} == pytest.approx(reasons[0].shares)
    assert explorer.runs[0].model.ensemble.weights["content"] != 30.0  # of other visitors


def test_ranks_of_held_out_items_are_those_of_the_evaluation(run, explorer, tmp_path):
    opened, users = explorer.runs[0], explorer.users
    vocabulary = opened.model.recommender.vocabulary
    write_cases(run / "prepare", tmp_path / "cases", len(vocabulary), seed=opened.config.evaluate.seed)
    scorer = Recommender.load(run).ranker.by_history(KEPT)
    found = rank_users(
        scorer, tmp_path / "cases", train_counts=vocabulary.train_counts, max_length=12, protocols=("full",)
    )
    assert len(found.ranks) == sum(users.counts.values()) == 150
    wrong = []
    for row in found.ranks.to_dict("records")[:40]:
        user = users.find(row["user_id"])
        for rule in (KEPT, MASKED):
            rank = opened.model.rank(user.history, user.target, rule == MASKED, tie=user.tie)
            if rank.place != row[RANK["full", rule]]:
                wrong.append((row["user_id"], rule, rank, row[RANK["full", rule]]))
    assert not wrong


def test_users_are_drawn_by_what_training_knew_of_their_item(explorer):
    users = explorer.users
    counts = explorer.runs[0].model.recommender.vocabulary
    for group, number in users.counts.items():
        drawn = {users.draw(group, place).user for place in range(number)}
        assert len(drawn) == number
        if not number:
            with pytest.raises(InputError, match=group):
                users.draw(group, 0)
            continue
        user = users.draw(group, number)  # starts again
        assert user == users.draw(group, 0) == users.find(f" {user.user} ")
        (code,) = counts.encode([user.target])
        assert user.trained == counts.train_counts[code]
        assert {"head": user.trained >= 4, "tail": 1 <= user.trained < 4, "cold": user.trained == 0}[group]
    with pytest.raises(InputError, match="nobody"):
        users.find("nobody")


def test_a_history_of_nothing_known_says_so(explorer):
    session = explorer.session()
    assert explorer.cards(session)[0].fallback
    session.history = ["no such item"]
    assert explorer.cards(session)[0].fallback
    session.history = ["no such item", "i0004"]
    card = explorer.cards(session)[0]
    assert not card.fallback and card.unknown == 1


def test_a_bar_is_as_long_as_what_was_added_and_taken_away():
    (first, second) = bars([Recommended("a", 1.0, {"x": 3.0, "y": -1.0}), Recommended("b", 1.0, {"x": 1.0, "y": 0.0})])
    assert [part.width for part in first] == [75, 25] and [part.width for part in second] == [25, 0]
    assert bars([Recommended("a", 1.0)]) == [[]]


def test_runs_of_one_name_are_told_apart(run):
    labels = [model.label for model in Explorer([run, run, run / "baselines" / "other"]).models]
    assert labels == ["model0 (run)", "model0 (run) 2", "model1"]


def test_nothing_to_explore_is_one_line(tmp_path):
    with pytest.raises(InputError, match="--url"):
        Explorer([])
    with pytest.raises(InputError):
        Explorer([tmp_path])
