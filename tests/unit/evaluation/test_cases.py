"""The stored candidates: never an interaction, never twice, and the same whatever the order, the parts or the run."""

import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, USER
from llmcfsr_merlin.evaluation.cases import (
    CANDIDATES,
    TIE,
    draw_negatives,
    read_cases,
    said_negatives,
    write_cases,
)
from llmcfsr_merlin.evaluation.ranks import rank_users
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.evaluation.prepared import random_sequences, write_prepare


def cases_of(directory, sequences, rows, parts=2, **settings):
    write_prepare(directory, sequences, rows, parts)
    write_cases(directory, directory / "cases.parquet", rows, **settings)
    return pq.read_table(directory / "cases.parquet").to_pandas().set_index(USER)


@pytest.mark.parametrize("rows", [60, 2000], ids=["from the rest of a small catalogue", "by rejection"])
def test_negatives_are_distinct_unseen_items(tmp_path, rows):
    sequences = random_sequences(200, rows)
    frame = cases_of(tmp_path, sequences, rows, negatives=30)
    for user, sequence in sequences.items():
        drawn = frame.loc[user, CANDIDATES]
        assert len(drawn) == len(set(drawn)) == 30
        assert not set(drawn) & set(sequence)
        assert drawn.min() >= FIRST_ITEM and drawn.max() < rows


def test_draw_does_not_depend_on_order_parts_or_other_users(tmp_path):
    sequences = random_sequences(100, 500)
    first = cases_of(tmp_path / "a", sequences, 500)
    turned = dict(reversed(sequences.items()))
    turned.pop("u50")
    second = cases_of(tmp_path / "b", turned, 500, parts=7)
    for user in turned:
        assert (first.loc[user, CANDIDATES] == second.loc[user, CANDIDATES]).all()
        assert first.loc[user, TIE] == second.loc[user, TIE]


def test_empty_part_files_are_skipped(tmp_path):
    frame = cases_of(tmp_path, {"a": [3, 4, 5], "b": [7, 8, 9]}, 30, parts=5, negatives=5)
    assert list(frame.index) == ["a", "b"]
    assert [len(block) for block in Dataset(tmp_path).sequences()] == [1, 1]


def test_seeds_and_users_differ():
    known = np.array([5, 6])
    one, _ = draw_negatives("u1", known, 5000, 100, 1)
    assert not (one == draw_negatives("u2", known, 5000, 100, 1)[0]).all()
    assert not (one == draw_negatives("u1", known, 5000, 100, 2)[0]).all()


@pytest.mark.parametrize("rows", [203, 5003])
def test_draw_is_uniform(rows):
    known = np.arange(FIRST_ITEM, FIRST_ITEM + 20)
    times = np.zeros(rows)
    users, count = 3000, 100
    for user in range(users):
        times[draw_negatives(f"u{user}", known, rows, count, 0)[0]] += 1
    free = rows - FIRST_ITEM - 20
    share = count / free
    error = (times[FIRST_ITEM + 20 :] - users * share) / (users * share * (1 - share)) ** 0.5
    assert times[: FIRST_ITEM + 20].sum() == 0
    assert abs(error).max() < 5 and 0.85 < error.std() < 1.15


def test_a_small_catalogue_gives_the_candidates_that_there_are(tmp_path):
    sequences = {"most": [3, 4, 5, 6, 7], "all": [3, 4, 5, 6, 7, 8, 9], "few": [3, 3, 4]}
    frame = cases_of(tmp_path, sequences, 10, negatives=100)
    assert {user: sorted(frame.loc[user, CANDIDATES]) for user in sequences} == {
        "most": [8, 9], "all": [], "few": [5, 6, 7, 8, 9],
    }  # fmt: skip
    assert said_negatives(tmp_path / "cases.parquet") == "0 to 5"
    (batch,) = read_cases(tmp_path / "cases.parquet", max_length=9, batch_size=10)
    assert batch.candidates.shape == (3, 5) and sorted((batch.candidates == 0).sum(1)) == [0, 3, 5]

    def scorer(histories):
        scores = torch.zeros(len(histories), 10)
        scores[:, 0] = 9  # the padding, whatever a scorer says of it
        scores[:, 8] = 1
        return scores

    ranks = rank_users(
        scorer, tmp_path / "cases.parquet", train_counts=np.ones(10, np.int64), max_length=9, protocols=("sampled",)
    ).ranks.set_index(USER)["rank_sampled_kept"]
    assert ranks["all"] == 1 and 2 <= ranks["most"] <= 3 and 2 <= ranks["few"] <= 6


def test_a_large_enough_catalogue_is_said_by_one_number(tmp_path):
    cases_of(tmp_path, random_sequences(30, 500), 500, negatives=100)
    assert said_negatives(tmp_path / "cases.parquet") == "100"


@pytest.mark.parametrize("sequence", [[3, 4, 900], [3, 2, 4], [0, 3, 4]], ids=["beyond", "oov", "padding"])
def test_codes_outside_the_vocabulary_are_an_error(tmp_path, sequence):
    write_prepare(tmp_path, {"bad": sequence}, 1000, parts=1)
    with pytest.raises(InputError, match="user bad"):
        write_cases(tmp_path, tmp_path / "cases.parquet", 50, negatives=2)


def test_missing_sequences_are_an_error(tmp_path):
    with pytest.raises(InputError, match="llmcfsr prepare"):
        write_cases(tmp_path, tmp_path / "cases.parquet", 50)


def test_batches_hold_the_cut_history_and_the_whole_seen_set(tmp_path):
    write_prepare(tmp_path, {"a": [3, 4, 5, 4, 6], "b": [7, 8, 9], "c": [3, 9, 3]}, 20, parts=1)
    write_cases(tmp_path, tmp_path / "cases.parquet", 20, negatives=5)
    (batch,) = read_cases(tmp_path / "cases.parquet", max_length=2, batch_size=10)
    assert batch.histories.tolist() == [[5, 4], [7, 8], [3, 9]]
    assert batch.targets.tolist() == [6, 9, 3] and batch.last.tolist() == [4, 8, 9]
    assert batch.lengths.tolist() == [4, 2, 2]
    assert [sorted(seen.tolist()) for seen in batch.seen] == [[3, 4, 4, 5], [7, 8], [3, 9]]
    assert batch.repeats.tolist() == [False, False, True]
    assert batch.candidates.shape == (3, 5)


def test_validation_cases_never_hold_the_test_item(tmp_path):
    frame = cases_of(tmp_path, {"a": [3, 4, 5, 6], "b": [7, 8, 9]}, 30, negatives=5, split="valid")
    assert frame.loc["a", ITEM].tolist() == [3, 4, 5] and frame.loc["b", ITEM].tolist() == [7, 8]
    # Were the test item known to the draw, changing it could change the negatives.
    other = cases_of(tmp_path / "other", {"a": [3, 4, 5, 20]}, 30, parts=1, negatives=5, split="valid")
    assert (frame.loc["a", CANDIDATES] == other.loc["a", CANDIDATES]).all()


def test_thirty_thousand_users_take_seconds(tmp_path):
    write_prepare(tmp_path, random_sequences(3000, 20_000), 20_000)
    start = time.process_time()
    write_cases(tmp_path, tmp_path / "cases.parquet", 20_000)
    assert time.process_time() - start < 3  # a tenth of 30,000 users; about 0.3 s on an idle core
