"""Groups of test cases: head and tail, cold items, popularity deciles, and the metrics of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.dataset.user_histories import read_sequences
from llmcfsr_merlin.evaluation.metrics import MetricSums
from llmcfsr_merlin.evaluation.ranks import HISTORY_LENGTH, LAST, RANK, REPEAT, TARGET

LAST_PAIR = {"last_pair_ascending": 1, "last_pair_descending": -1}  # group -> sign of the step in catalogue order
DECILES = tuple(f"decile_{number}" for number in range(1, 11))
# Group -> shortest and longest untruncated history of the user, both included.
LENGTHS = {
    "history_1_2": (1, 2),
    "history_3_4": (3, 4),
    "history_5_9": (5, 9),
    "history_10_19": (10, 19),
    "history_20_49": (20, 49),
    "history_50_up": (50, 1 << 31),
}
SHUFFLED = "shuffled_history"  # everybody, ranked by the history in a random order (evaluate.shuffle_test)
SUMMARY_GROUPS = (
    "overall", "tail_item", "head_item", "tail_user", "head_user", "cold_item", "repeat_item", "new_item"
)  # fmt: skip


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
    ranks: pd.DataFrame,
    counts: np.ndarray,
    train_counts: np.ndarray,
    *,
    tail_item: int,
    tail_user: int,
    order: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Group name -> bool [users of `ranks`].

    counts, train_counts: int64 [V] by code. `counts` decide on tail items: the training counts, or `user_counts` as in
    the papers' code, test clicks included (evaluate.popularity_from). tail_item: a smaller count of the target;
    tail_user: shorter untruncated history (train and valid items at test).
    cold_item: target never seen in training. repeat_item, new_item: whether the target is in the user's history.
    decile_1..10: training popularity of the target, 10 the highest. history_*: LENGTHS.
    order: int64 [V], places of the items in the catalogue's order (catalogue_order), for the groups LAST_PAIR: users
    whose target comes after, or before, the preceding item in that order. In a log sorted by item within equal times,
    the first group holds pairs in an order that nobody clicked in.
    """
    target = ranks[TARGET].to_numpy()
    tail = np.asarray(counts)[target] < tail_item
    length = ranks[HISTORY_LENGTH].to_numpy()
    short = length < tail_user
    decile = popularity_deciles(np.asarray(train_counts)[FIRST_ITEM:])[target - FIRST_ITEM]
    pairs = {}
    if order is not None and LAST in ranks:  # files of earlier versions have neither LAST nor REPEAT
        step = np.sign(order[target] - order[ranks[LAST].to_numpy()])
        pairs = {name: step == sign for name, sign in LAST_PAIR.items()}
    repeats = {}
    if REPEAT in ranks:
        repeats = {"repeat_item": ranks[REPEAT].to_numpy(), "new_item": ~ranks[REPEAT].to_numpy()}
    return {
        "overall": np.ones(len(ranks), bool),
        "tail_item": tail,
        "head_item": ~tail,
        "tail_user": short,
        "head_user": ~short,
        "cold_item": np.asarray(train_counts)[target] == 0,
        **repeats,
        **{name: (length >= least) & (length <= most) for name, (least, most) in LENGTHS.items()},
        **{name: decile == number for number, name in enumerate(DECILES, 1)},
        **pairs,
    }


def group_metrics(
    ranks: pd.DataFrame,
    masks: dict[str, np.ndarray],
    ks: Sequence[int],
    *,
    dataset: str,
    recipe: str,
    seed: int,
    weights: Mapping[str, str] | None = None,
) -> list[dict]:
    """Rows {dataset, recipe, seed, protocol, history, weights, group, metric, value, count} of every protocol and
    history rule that `ranks` holds.

    weights: history rule -> the rule that the score weights were chosen for (Ranking.weights); None: each has its own.
    Empty groups are left out: a mean over nobody is not zero.
    """
    rows = []
    for (protocol, rule), column in RANK.items():
        if column not in ranks:
            continue
        places = ranks[column].to_numpy()
        about = _about(dataset, recipe, seed, protocol, rule, weights)
        for group, mask in masks.items():
            if not mask.any():
                continue
            sums = MetricSums(ks)
            sums.add(places[mask])
            for metric, value in sums.means().items():
                rows.append({**about, "group": group, "metric": metric, "value": value, "count": sums.count})
    return rows


def catalogue_metrics(
    values: Mapping[str, Mapping[str, float]],
    count: int,
    *,
    dataset: str,
    recipe: str,
    seed: int,
    weights: Mapping[str, str] | None = None,
) -> list[dict]:
    """The catalogue metrics of Ranking.catalogue in the same form (protocol full, group overall)."""
    return [
        {**_about(dataset, recipe, seed, "full", rule, weights), "group": "overall", "metric": metric, "value": value,
         "count": count}
        for rule, of_rule in values.items()
        for metric, value in of_rule.items()
    ]  # fmt: skip


def _about(dataset: str, recipe: str, seed: int, protocol: str, rule: str, weights: Mapping[str, str] | None) -> dict:
    chosen = rule if weights is None else weights[rule]
    return {
        "dataset": dataset, "recipe": recipe, "seed": seed, "protocol": protocol, "history": rule, "weights": chosen,
    }  # fmt: skip


def with_history(metrics: Sequence[dict], rule: str) -> list[dict]:
    """Metric rows, with the history rule `rule` if an earlier version wrote none: it measured the recipe's alone."""
    return [row if "history" in row else {**row, "history": rule, "weights": rule} for row in metrics]
