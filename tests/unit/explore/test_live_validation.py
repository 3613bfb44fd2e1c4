"""Figures of the sliders are those of the calibration."""

import numpy as np
import pytest
import torch

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import HISTORY_RULES, KEPT, MASKED
from llmcfsr_merlin.explore import live_validation
from llmcfsr_merlin.explore.live_validation import LiveValidation
from llmcfsr_merlin.training import candidates
from llmcfsr_merlin.training.validation_ranks import ValidationBatches, ndcg, validation_ranks


def batches(run):
    return list(ValidationBatches(Dataset.load(run).files("valid"), 64, torch.device("cpu")))


@pytest.mark.parametrize("whole", [True, False])
def test_figures_are_those_of_all_items(run, explorer, monkeypatch, whole):
    """Also from the candidates of a catalogue that is too large to be kept."""
    monkeypatch.setattr(candidates, "KEPT", 1000 if whole else 20)
    opened = explorer.runs[0]
    model = opened.model.ensemble
    tail = Dataset.load(run).train_counts < 4
    live = LiveValidation(model, batches(run), tail)
    if not whole:
        assert live._kept._values[0][0].shape[1] < len(tail)
    points = [opened.model.weights(False), opened.model.weights(False) | {"content": 0.5, "transitions": 3.0}]
    targets, found = validation_ranks(model, batches(run), [tuple(point.values()) for point in points])
    assert live.users == len(targets) == 150
    for rule in HISTORY_RULES:
        for point, ranks in zip(points, found[rule]):
            figures = live.figures(point, rule)
            assert figures.overall == pytest.approx(ndcg(ranks)) and figures.hr == pytest.approx((ranks < 10).mean())
            assert figures.head == pytest.approx(ndcg(ranks[~tail[targets]]))
            if tail[targets].any():
                assert figures.tail == pytest.approx(ndcg(ranks[tail[targets]]))


def test_the_trade_off_gives_up_no_more_than_it_was_allowed(explorer, run):
    opened = explorer.runs[0]
    tail = np.arange(len(Dataset.load(run).train_counts)) % 3 == 0
    live = LiveValidation(opened.model.ensemble, batches(run), tail)
    for rule in (KEPT, MASKED):
        start = opened.model.weights(rule == MASKED)
        found = [live.figures(live.trade_off(start, rule, tolerance), rule) for tolerance in (0, 0.05, 0.1)]
        best = max(figures.overall for figures in live._trades[rule, live._point(start)].values.values())
        assert [one.overall >= (1 - t) * best for one, t in zip(found, (0, 0.05, 0.1))] == [True] * 3
        assert found[0].tail <= found[1].tail <= found[2].tail and found[0].overall >= live.figures(start, rule).overall


def test_what_was_measured_is_not_measured_again(run, explorer, monkeypatch):
    opened = explorer.runs[0]
    live = LiveValidation(opened.model.ensemble, batches(run), np.zeros(len(Dataset.load(run).train_counts), bool))
    weights = opened.model.weights(False)
    first = live.figures(weights, KEPT)
    monkeypatch.setattr(live_validation, "validation_ranks", None)
    assert live.figures(weights, KEPT) == first
    assert first.tail != first.tail and live.tail_users == 0  # nobody there: no figure
