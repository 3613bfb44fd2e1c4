"""The one top-k against a plain sort: values, ties by the smaller place, rows where nothing is left."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcfsr_merlin.scoring import ranker
from llmcfsr_merlin.scoring.ranker import Ranker, select_top_k
from tests.unit.scoring.test_network import ROWS, build

VALUES = st.sampled_from([-float("inf"), -1.0, 0.0, -0.0, 0.5, 2.0])  # few of them: long ties


@settings(deadline=None, max_examples=200)
@given(
    st.data(), st.integers(1, 4), st.integers(1, 60), st.sampled_from([0, 1, 5, 32]), st.sampled_from([1, 2, 3, 128])
)
def test_top_k_is_that_of_a_stable_sort(data, rows, width, spare, block):
    row = st.lists(VALUES, min_size=width, max_size=width)
    scores = torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    k = data.draw(st.integers(1, width))
    with mock.patch.multiple(ranker, _SPARE=spare, _BLOCK=block, _BLOCKS_FROM=1):
        places, picked = select_top_k(scores, k)
    for row in range(rows):
        wanted = sorted(range(width), key=lambda place: (-scores[row, place].item(), place))[:k]
        assert picked[row].tolist() == scores[row, wanted].tolist()
        assert places[row].tolist() == [place if scores[row, place] > -torch.inf else 0 for place in wanted]


@pytest.mark.parametrize("width", [50, 5000, 100_001])
def test_a_tie_of_the_whole_row_ends_at_its_smallest_places(width):
    scores = torch.zeros(3, width)
    scores[1, 40], scores[2] = 1, torch.arange(width).flip(0)
    places, _ = select_top_k(scores, 4)
    assert places.tolist() == [[0, 1, 2, 3], [40, 0, 1, 2], [0, 1, 2, 3]]


def test_the_mask_of_blocked_items():
    mask = Ranker(build()).blocked([None, [5, 9], [], None], [[], [9], [7], [3, 3, 40]])
    assert mask.shape == (4, ROWS)
    assert [row.nonzero().flatten().tolist() for row in mask[[0, 3]]] == [[], [3, 40]]
    assert (~mask[1]).nonzero().flatten().tolist() == [5] and mask[2].all()
