"""Transitions against a plain loop over all pairs, in one part of the items and in many, from one file and from two."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.scorer_settings import TransitionSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, TIED
from llmcfsr_merlin.scoring.scorer import FitContext, ItemVectors
from llmcfsr_merlin.scoring.scorers.transition_counts import count_transitions
from llmcfsr_merlin.scoring.scorers.transition_counts_gpu import count_transitions_on
from llmcfsr_merlin.scoring.scorers.transitions import TransitionScorer

ROWS = 12
SEQUENCES = st.lists(st.lists(st.integers(2, ROWS - 1), max_size=25), min_size=1, max_size=8)
# (item, whether it is of the time of the one before)
TIMED = st.lists(st.lists(st.tuples(st.integers(2, ROWS - 1), st.booleans()), max_size=25), min_size=1, max_size=8)


def write(path, sequences: list[list[int]], group: int = 3, tied: list[list[bool]] | None = None) -> str:
    table = pa.table({ITEM: pa.array(sequences, pa.list_(pa.int64()))})
    if tied is not None:
        table = table.append_column(TIED, pa.array(tied, pa.list_(pa.bool_())))
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def reference(sequences: list[list[int]], counts: np.ndarray, backward: float = 0.3, tied=None) -> np.ndarray:
    w = np.zeros((ROWS, ROWS))
    for number, row in enumerate(sequences):
        time = np.cumsum(~np.array(tied[number], bool)) if tied else np.arange(len(row))
        for i, first in enumerate(row):
            for j, second in enumerate(row):
                if 0 < abs(i - j) <= 20 and min(first, second) >= FIRST_ITEM:
                    share = (1 + backward) / 2 if time[i] == time[j] else 1 if j > i else backward
                    w[first, second] += abs(i - j) ** -0.5 * share
    scale = np.sqrt(np.maximum(counts, 1))
    return w / (np.outer(scale, scale) + 5)


def cosine_reference(sequences: list[list[int]], counts: np.ndarray) -> np.ndarray:
    users = np.zeros((ROWS, ROWS))
    for row in sequences:
        place = {item: row.index(item) for item in row if item >= FIRST_ITEM}
        for one, at in place.items():
            for other, there in place.items():
                users[one, other] += one != other and abs(at - there) <= 20
    scale = np.sqrt(np.maximum(counts, 1))
    return users / (np.outer(scale, scale) + 10)


def dense(item_ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.zeros((ROWS, ROWS))
    np.put_along_axis(found, item_ids.astype(int), values, 1)
    found[:, 0] = 0  # of the empty places
    return found


def on_the_device(files, rows, counts, neighbours, folder, room, **settings):
    """The way of a GPU, on this CPU's tensors."""
    return count_transitions_on(torch.device("cpu"), files, rows, counts, neighbours, room, **settings)


def test_settings_of_before_ask_for_no_other_training():
    """They came after models had been trained."""

    def key(**scorers):
        return ModelConfig(scorers=scorers).trained_by()["scorers"]

    assert key(transitions={"directed": True, "score_history": True}) == {"transitions": {"neighbours": 100}}
    assert key(content={"match_itself": True}) == {"content": {"lexical_share": 0.3}}
    assert key(popularity={}) == {"popularity": {}}
    assert key(popularity={"decay": 0.5}) == {"popularity": {"decay": 0.5}}
    for chosen in (None, False):
        found = key(transitions={"directed": chosen})["transitions"]
        assert found == {"neighbours": 100, "directed": chosen, "score_history": False}
    assert key(content={})["content"] == {"lexical_share": 0.3, "match_itself": False}


@pytest.mark.parametrize(("step", "directed"), [("ascending", False), ("shuffled", True)])
def test_a_log_that_is_sorted_by_item_has_no_direction(step, directed, tmp_path):
    """In nine of ten steps the next id is the larger one: who knows which came first?"""
    random = np.random.default_rng(0)
    log = []
    for user in range(60):
        items = random.choice(40, 6, replace=False)
        if step == "ascending" and user % 10:
            items.sort()
        log += [(f"u{user}", f"i{item:02d}", day) for day, item in enumerate(items)]
    config = Config.load(None, ["data.duplicates=keep", "prepare.filter=none"], None)
    dataset = Dataset.from_frames(pd.DataFrame(log, columns=["user_id", "item_id", "timestamp"]), config=config)
    said = []

    def fit(**settings):
        context = FitContext(tmp_path, lambda network: [], said.append)
        return TransitionScorer.fit(TransitionSettings(**settings), dataset, ItemVectors(dataset.shape), context)

    found, wanted = fit().next_weights, fit(directed=directed).next_weights
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, fit(directed=not directed).next_weights)
    assert ("ascend by item id" in said[0]) == (not directed)


def test_the_order_within_a_day_is_no_evidence(tmp_path):
    """A log of days, each listed by item: the days have an order, whoever came first on one of them."""
    random = np.random.default_rng(0)
    log = []
    for user in range(60):
        days = np.split(random.choice(40, 6, replace=False), 2)
        log += [(f"u{user}", f"i{item:02d}", day) for day, items in enumerate(days) for item in sorted(items)]
    config = Config.load(None, ["data.duplicates=keep", "prepare.filter=none"], None)
    dataset = Dataset.from_frames(pd.DataFrame(log, columns=["user_id", "item_id", "timestamp"]), config=config)
    said: list[str] = []

    def fit(**settings):
        context = FitContext(tmp_path, lambda network: [], said.append)
        return TransitionScorer.fit(TransitionSettings(**settings), dataset, ItemVectors(dataset.shape), context)

    found = fit().next_weights
    torch.testing.assert_close(found, fit(directed=True).next_weights)
    assert not torch.equal(found, fit(directed=False).next_weights)
    assert said[0].endswith("66.7% of the steps are within one time and have no direction")
    for path in map(Path, dataset.files("train")):
        pq.write_table(pq.read_table(path).drop([TIED]), path)
    fit()
    assert "ascend by item id" in said[-1]  # two of three do, and nobody knows that these are of one day
    fit(directed=True)
    assert "an earlier version prepared the data" in said[-1]


WAYS = pytest.mark.parametrize("count", [count_transitions, on_the_device])


@WAYS
@settings(deadline=None, max_examples=50)
@given(sequences=SEQUENCES, room=st.sampled_from([1, 100, 1 << 20]), backward=st.sampled_from([0.3, 1.0]))
def test_transitions_are_those_of_a_plain_loop(tmp_path_factory, sequences, room, backward, count):
    folder = tmp_path_factory.mktemp("sequences")
    half = len(sequences) // 2
    files = [write(folder / "0.parquet", sequences[:half]), write(folder / "1.parquet", sequences[half:])]
    counts = np.bincount([code for row in sequences for code in row], minlength=ROWS)
    codes, weights, cosines = count(files, ROWS, counts, ROWS, folder, room, backward=backward)
    found = np.zeros((ROWS, ROWS))
    np.testing.assert_allclose(dense(codes, cosines), cosine_reference(sequences, counts), rtol=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == ["0.parquet", "1.parquet"]  # nothing is left behind
    for row, (neighbours, values) in enumerate(zip(codes, weights)):
        assert len(set(neighbours[values > 0])) == (values > 0).sum()
        found[row, neighbours[values > 0]] = values[values > 0]
    np.testing.assert_allclose(found, reference(sequences, counts, backward), rtol=1e-5)
    if backward == 1:
        np.testing.assert_allclose(found, found.T, rtol=1e-5)


@WAYS
@settings(deadline=None, max_examples=50)
@given(rows=TIMED, room=st.sampled_from([1, 100, 1 << 20]), backward=st.sampled_from([0.3, 1.0]))
def test_pairs_of_one_time_have_no_direction(tmp_path_factory, rows, room, backward, count):
    folder = tmp_path_factory.mktemp("sequences")
    sequences, tied = ([[pair[part] for pair in row] for row in rows] for part in (0, 1))
    tied = [[False, *row[1:]] if row else [] for row in tied]
    half = len(rows) // 2
    parts = slice(None, half), slice(half, None)
    files = [write(folder / f"{n}.parquet", sequences[at], 3, tied[at]) for n, at in enumerate(parts)]
    counts = np.bincount([code for row in sequences for code in row], minlength=ROWS)
    codes, weights, cosines = count(files, ROWS, counts, ROWS, folder, room, backward=backward)
    np.testing.assert_allclose(dense(codes, weights), reference(sequences, counts, backward, tied), rtol=1e-5)
    np.testing.assert_allclose(dense(codes, cosines), cosine_reference(sequences, counts), rtol=1e-5)


@WAYS
def test_ties_by_hand(count, tmp_path):
    """a, then b and c at once, then d: b and c follow each other alike, and both follow a and are followed by d."""
    a, b, c, d = range(FIRST_ITEM, FIRST_ITEM + 4)
    file = write(tmp_path / "0.parquet", [[a, b, c, d]], tied=[[False, False, True, False]])
    codes, weights, _ = count([file], ROWS, np.full(ROWS, 1), ROWS, tmp_path, 1 << 20)
    w = dense(codes, weights)
    np.testing.assert_allclose([w[b, c], w[c, b]], 0.65 / 6, rtol=1e-6)
    np.testing.assert_allclose([w[a, b], w[b, a], w[c, d], w[d, c]], np.array([1, 0.3, 1, 0.3]) / 6, rtol=1e-6)


def test_files_of_before_are_of_one_direction(tmp_path):
    """Without the column nothing is known of ties: as if no two times were equal."""
    rows = [[3, 4, 5, 4], [5, 3]]
    old = write(tmp_path / "old.parquet", rows)
    new = write(tmp_path / "new.parquet", rows, tied=[[False] * 4, [False] * 2])
    for found, wanted in zip(*(count_transitions([file], ROWS, np.ones(ROWS), 4, tmp_path) for file in (old, new))):
        np.testing.assert_array_equal(found, wanted)


@WAYS
@pytest.mark.parametrize("room", [1, 1 << 20])
def test_the_largest_are_kept_ties_by_the_smaller_code(tmp_path, room, count):
    file = write(tmp_path / "0.parquet", [[3, 9], [3, 9], [3, 5], [3, 7], [4, 3]])
    codes, weights, _ = count([file], ROWS, np.full(ROWS, 4), 2, tmp_path, room)
    assert codes[3].tolist() == [9, 5]
    assert codes[5].tolist() == [3, 0] and weights[5, 1] == 0
    np.testing.assert_allclose(weights[3], np.array([2, 1]) / 9, rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(SEQUENCES, st.sampled_from([1, 1 << 20]), st.integers(1, 4))
def test_both_ways_keep_the_same_neighbours(tmp_path_factory, sequences, room, neighbours):
    """Where sums that are equal on paper differ in their last bit, either may come first: the values agree."""
    folder = tmp_path_factory.mktemp("sequences")
    files, counts = [write(folder / "0.parquet", sequences)], np.full(ROWS, 4)
    codes, weights, _ = count_transitions(files, ROWS, counts, neighbours, folder, room)
    found, values, cosines = on_the_device(files, ROWS, counts, neighbours, folder, room)
    assert (found.dtype, values.dtype, found.shape) == (codes.dtype, weights.dtype, codes.shape)
    assert (cosines.dtype, cosines.shape) == (weights.dtype, weights.shape)
    np.testing.assert_allclose(values, weights, rtol=1e-5)
    differ = found != codes
    known = reference(sequences, counts)
    rows = np.nonzero(differ)[0]
    np.testing.assert_allclose(known[rows, found[differ]], known[rows, codes[differ]], rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("room", [1000, None])
def test_a_gpu_counts_what_the_cpu_counts(tmp_path, room):
    random = np.random.default_rng(0)
    sequences = [random.integers(2, ROWS, random.integers(0, 40)).tolist() for _ in range(200)]
    file, counts = write(tmp_path / "0.parquet", sequences), np.full(ROWS, 400)
    expected = count_transitions([file], ROWS, counts, ROWS, tmp_path)
    found = count_transitions_on(torch.device("cuda"), [file], ROWS, counts, ROWS, room)
    for values, wanted in zip(found[1:], expected[1:]):
        np.testing.assert_allclose(values, wanted, rtol=1e-5)
