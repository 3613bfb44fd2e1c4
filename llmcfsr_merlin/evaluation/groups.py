"""Groups of test cases: head and tail, cold items, popularity deciles, and the metrics of each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.dataset.user_histories import read_sequences
from llmcfsr_merlin.evaluation.metrics import MetricSums
from llmcfsr_merlin.evaluation.ranks import HISTORY_LENGTH, RANK, TARGET

DECILES = tuple(f"decile_{number}" for number in range(1, 11))


def popularity_deciles(counts: np.ndarray) -> np.ndarray:
    """Decile of each item by its count: int64 [N] in 1..10, 10 the most popular tenth of the catalogue.

    Items of one count share a decile (that of their mean place), so that deciles can be empty or uneven.

    >>> popularity_deciles(np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, 90]))
    array([ 3,  3,  3,  3,  3,  6,  7,  8,  9, 10])
    """
    place = pd.Series(counts).rank(method="average").to_numpy()
    return np.ceil(10 * place / max(len(place), 1)).astype(np.int64)


def user_counts(prepare: Path, rows: int) -> np.ndarray:
    """Users of each item in the whole sequences, test items included: int64 [V].

    This is what the papers' code counts for its tail items (a repeat by the same user counts once).
    """
    counts = np.zeros(rows, np.int64)
    for _, sequences in read_sequences(prepare):
        counts += np.bincount(np.concatenate([np.unique(one) for one in sequences]), minlength=rows)
    return counts


def group_masks(
    ranks: pd.DataFrame, counts: np.ndarray, train_counts: np.ndarray, *, tail_item: int, tail_user: int
) -> dict[str, np.ndarray]:
    """Group name -> bool [users of `ranks`].

    counts, train_counts: int64 [V] by code. `counts` decide on tail items: the training counts, or `user_counts` as in
    the papers' code, test clicks included (evaluate.popularity_from). tail_item: a smaller count of the target;
    tail_user: shorter untruncated history (train and valid items at test).
    cold_item: target never seen in training. decile_1..10: training popularity of the target, 10 the highest.
    """
    target = ranks[TARGET].to_numpy()
    tail = np.asarray(counts)[target] < tail_item
    short = ranks[HISTORY_LENGTH].to_numpy() < tail_user
    decile = popularity_deciles(np.asarray(train_counts)[FIRST_ITEM:])[target - FIRST_ITEM]
    return {
        "overall": np.ones(len(ranks), bool),
        "tail_item": tail,
        "head_item": ~tail,
        "tail_user": short,
        "head_user": ~short,
        "cold_item": np.asarray(train_counts)[target] == 0,
        **{name: decile == number for number, name in enumerate(DECILES, 1)},
    }


def group_metrics(
    ranks: pd.DataFrame, masks: dict[str, np.ndarray], ks: Sequence[int], *, dataset: str, recipe: str, seed: int
) -> list[dict]:
    """Rows {dataset, recipe, seed, protocol, group, metric, value, count} of every protocol that `ranks` holds.

    Empty groups are left out: a mean over nobody is not zero.
    """
    rows = []
    for protocol, column in RANK.items():
        if column not in ranks:
            continue
        places = ranks[column].to_numpy()
        for group, mask in masks.items():
            if not mask.any():
                continue
            sums = MetricSums(ks)
            sums.add(places[mask])
            about = {"dataset": dataset, "recipe": recipe, "seed": seed, "protocol": protocol, "group": group}
            for metric, value in sums.means().items():
                rows.append({**about, "metric": metric, "value": value, "count": sums.count})
    return rows


def catalogue_metrics(values: dict[str, float], count: int, *, dataset: str, recipe: str, seed: int) -> list[dict]:
    """The catalogue metrics of Ranking.catalogue in the same form (protocol full, group overall)."""
    about = {"dataset": dataset, "recipe": recipe, "seed": seed, "protocol": "full", "group": "overall"}
    return [{**about, "metric": name, "value": value, "count": count} for name, value in values.items()]
