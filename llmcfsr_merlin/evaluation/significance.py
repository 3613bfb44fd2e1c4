"""Paired comparison of two recipes from their per-user ranks: difference, confidence interval, p-value, Holm.

Users are the sampling unit. With several seeds, or several targets (prepare.targets=all), a user's value is the mean
over them, so that the interval says how the difference would vary with other users, not with other seeds: report the
spread over seeds as well.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from llmcfsr_merlin.dataset.names import HISTORY_RULES, USER
from llmcfsr_merlin.evaluation.metrics import gains
from llmcfsr_merlin.evaluation.ranks import HISTORY_LENGTH, RANK, SEED, TARGET
from llmcfsr_merlin.runtime.errors import InputError

_NORMAL_FROM = 300  # distinct values: beyond, the multinomial of each resample costs more than it tells
_BLOCK_ENTRIES = 4_000_000  # random numbers held at a time


def compare(
    ranks: pd.DataFrame,
    base: pd.DataFrame,
    masks: dict[str, np.ndarray],
    ks: Sequence[int] = (10,),
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict]:
    """Compare `ranks` with `base` in every protocol and history rule that both hold, for every group and metric.

    ranks, base: frames of rank_users, one row per case (and seed, if there is a SEED column); a user's cases have
    different history lengths. masks: of `group_masks` on `base` (on one seed of it), in its order. Returns rows
    {protocol, history, group, metric, base, value, difference, relative, low, high, p, p_holm, count}: difference =
    value - base, [low, high] its percentile bootstrap interval, p the two-sided paired sign-flip permutation test,
    p_holm corrected over all rows of a history rule.
    Raises InputError if the two were not measured on the same users and targets.
    """
    cases = distinct_cases(base)
    _check_same_cases(ranks, base, len(cases))
    if any(len(mask) != len(cases) for mask in masks.values()):
        raise ValueError(f"expected masks over the {len(cases)} cases of the base")
    users, repeated = cases[USER].to_numpy(), bool(cases[USER].duplicated().any())
    generator = np.random.default_rng(seed)
    rows: list[dict] = []
    for (protocol, rule), column in RANK.items():
        if column not in ranks or column not in base:
            continue
        ours, theirs = _case_gains(ranks, column, cases, ks), _case_gains(base, column, cases, ks)
        for group, mask in masks.items():
            if not mask.any():
                continue
            for metric in ours:
                value, reference = ours[metric][mask], theirs[metric][mask]
                if repeated:
                    of_users = (pd.Series(of).groupby(users[mask]).mean() for of in (value, reference))
                    value, reference = (means.to_numpy() for means in of_users)
                low, high, p = paired_test(value - reference, confidence, resamples, generator)
                mean, before = float(value.mean()), float(reference.mean())
                rows.append(
                    {
                        "protocol": protocol,
                        "history": rule,
                        "group": group,
                        "metric": metric,
                        "base": before,
                        "value": mean,
                        "difference": mean - before,
                        "relative": (mean - before) / before if before else None,
                        "low": low,
                        "high": high,
                        "p": p,
                        "count": len(value),
                    }
                )
    for rule in HISTORY_RULES:
        of_rule = [row for row in rows if row["history"] == rule]
        for row, corrected in zip(of_rule, holm([row["p"] for row in of_rule])):
            row["p_holm"] = corrected
    return rows


def paired_test(
    differences: np.ndarray, confidence: float, resamples: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Bootstrap interval of the mean of `differences` [n] and the two-sided sign-flip p-value, (1 + hits) / (1 + R).

    A metric cut at K takes few distinct values, so a resample is drawn as the counts of the distinct values
    (multinomial, binomial) instead of n indices: the same distribution at a fraction of the cost. If hundreds of
    values differ (MRR of many users), both distributions are at their normal limit, which is used instead.
    """
    count = len(differences)
    values, times = np.unique(np.round(differences, 12), return_counts=True)
    sizes, flips = np.unique(np.abs(np.round(differences, 12)), return_counts=True)
    if len(values) > _NORMAL_FROM:
        half = norm.ppf((1 + confidence) / 2) * differences.std() / count**0.5
        p = 2 * norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
        return float(differences.mean() - half), float(differences.mean() + half), max(float(p), 1 / (1 + resamples))
    means, flipped = [], []
    block = max(1, _BLOCK_ENTRIES // max(len(values), len(sizes)))
    for start in range(0, resamples, block):
        now = min(block, resamples - start)
        means.append(generator.multinomial(count, times / count, now) @ values / count)
        signs = 2 * generator.binomial(flips, 0.5, (now, len(flips))) - flips
        flipped.append(signs @ sizes / count)
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    observed = abs(values @ times / count)
    hits = int((np.abs(np.concatenate(flipped)) >= observed - 1e-12).sum())
    return float(low), float(high), (1 + hits) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: family-wise error over all p-values, uniformly better than Bonferroni.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found = np.asarray(p_values, np.float64)
    order = np.argsort(found, kind="stable")
    stepped = np.maximum.accumulate(found[order] * np.arange(len(order), 0, -1))
    corrected = np.empty_like(stepped)
    corrected[order] = np.minimum(stepped, 1)
    return corrected.tolist()


def distinct_cases(ranks: pd.DataFrame) -> pd.DataFrame:
    """One row of each case, whichever recipe and seed: a user's cases differ in the length of the history."""
    return ranks.drop_duplicates(_case(ranks))


def _case(ranks: pd.DataFrame) -> list[str]:
    return [USER, HISTORY_LENGTH] if HISTORY_LENGTH in ranks else [USER]


def _case_gains(frame: pd.DataFrame, column: str, cases: pd.DataFrame, ks: Sequence[int]) -> dict[str, np.ndarray]:
    values = pd.DataFrame(gains(frame[column].to_numpy(), ks)).drop(columns=[f"mrr@{k}" for k in ks])  # mrr is there
    keys = _case(cases)
    means = values.groupby([frame[key].to_numpy() for key in keys]).mean()
    if len(keys) > 1:
        means = means.reindex(pd.MultiIndex.from_frame(cases[keys]))
    else:
        means = means.reindex(cases[USER].to_numpy())
    return {metric: means[metric].to_numpy() for metric in means}


def _check_same_cases(ranks: pd.DataFrame, base: pd.DataFrame, count: int) -> None:
    users = base[USER].nunique()
    for frame in (ranks, base):
        keys = [*_case(base), SEED] if SEED in frame else _case(base)
        if frame.duplicated(keys).any():
            raise ValueError(f"expected one row for each of {keys}, found repeats: compare one recipe at a time")
    cases = [*_case(base), TARGET]
    pairs = pd.concat([ranks[cases], base[cases]]).drop_duplicates()
    if ranks[USER].nunique() != users or len(pairs) != count:
        raise InputError(
            f"expected two runs over the same users and targets, found {ranks[USER].nunique()} against {users} users "
            f"and {len(pairs)} different (user, target) pairs: both must come from the same prepared data"
        )
