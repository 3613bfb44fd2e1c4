"""The work of stage evaluate: ranks every model on the same stored cases and writes ranks and metrics."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.config.evaluate_settings import EvaluateConfig
from llmcfsr_merlin.dataset.catalogue_order import catalogue_order
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import CASES, FIRST_ITEM, METRICS, RANKS, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation.cases import said_negatives, write_cases
from llmcfsr_merlin.evaluation.groups import (
    SHUFFLED,
    SUMMARY_GROUPS,
    catalogue_metrics,
    group_masks,
    group_metrics,
    user_counts,
)
from llmcfsr_merlin.evaluation.item_facts import item_facts
from llmcfsr_merlin.evaluation.ranks import RECIPE, ScoreFunction, rank_users, read_ranks, write_ranks
from llmcfsr_merlin.evaluation.significance import compare, distinct_cases
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import write_json

_log = logging.getLogger(__name__)


def measure(
    directory: Path,
    dataset: Dataset,
    models: Mapping[str, Callable[[], ScoreFunction]],
    *,
    name: str,
    seed: int,
    settings: EvaluateConfig,
) -> list[dict]:
    """Write CASES, RANKS and METRICS into `directory`; returns the metric rows.

    models: name -> function that returns its scoring function, called in turn so that only one is in memory. name: of
    the dataset. seed: the training seed, a label of the rows; the candidates have their own, settings.seed.
    """
    prepare, train_counts = dataset.prepared, dataset.train_counts
    negatives = settings.sampled_negatives if "sampled" in settings.protocols else 0
    write_cases(prepare, directory / CASES, len(train_counts), negatives=negatives, seed=settings.seed)
    protocols = settings.protocols
    if (found := said_negatives(directory / CASES)) != str(negatives):
        what = f"users are ranked against {found}, all items they did not interact with"
        if found == "0" and "full" in protocols:
            protocols, what = ("full",), "every user interacted with all of them, so only the full protocol is measured"
        _log.warning("the catalogue has too few items for evaluate.sampled_negatives=%d: %s", negatives, what)
    counts = tail_counts(prepare, settings)
    order = np.r_[np.zeros(FIRST_ITEM, np.int64), catalogue_order(dataset.vocabulary.ids.tolist())]
    metrics: list[dict] = []
    facts = item_facts(dataset)
    common: dict = {
        "train_counts": train_counts, "max_length": dataset.max_length, "ks": settings.ks,
        "batch_size": settings.batch_size,
    }  # fmt: skip

    def ranked(model: str) -> pd.DataFrame:
        scorer = models[model]()
        result = rank_users(scorer, directory / CASES, protocols=protocols, name=model, facts=facts, **common)
        masks = group_masks(
            result.ranks, counts, train_counts, tail_item=settings.tail_item, tail_user=settings.tail_user, order=order
        )
        about: dict = {"dataset": name, "recipe": model, "seed": seed, "weights": result.weights}
        metrics.extend(group_metrics(result.ranks, masks, settings.ks, **about))
        metrics.extend(catalogue_metrics(result.catalogue, len(result.ranks), **about))
        if settings.shuffle_test and "full" in protocols:
            name_of = f"{model}, histories shuffled"
            found = rank_users(
                scorer, directory / CASES, protocols=("full",), name=name_of, shuffle=settings.seed, **common
            )
            everybody = {SHUFFLED: np.ones(len(found.ranks), bool)}
            metrics.extend(group_metrics(found.ranks, everybody, settings.ks, **about))
        return result.ranks

    write_ranks(directory / RANKS, ((model, seed, ranked(model)) for model in models))
    write_json(directory / METRICS, metrics)
    return metrics


def compare_runs(
    ranks: Path, recipe: str, base_ranks: Path, base: str, prepare: Path, settings: EvaluateConfig, k: int = 10
) -> list[dict]:
    """Paired comparison of two recipes, of one run or of two (RANKS files), by the main groups.

    prepare: the prepare stage that both were ranked on. Returns rows of `significance.compare`; InputError if a
    recipe is missing or the runs were not measured on the same users and targets.
    """
    frames = []
    for path, name in ((ranks, recipe), (base_ranks, base)):
        frame = read_ranks(path, name, settings.history)
        if frame.empty:
            known = ", ".join(sorted(read_ranks(path)[RECIPE].unique()))
            raise InputError(f"{path}: expected ranks of recipe {name!r}, found {known}")
        frames.append(frame)
    masks = summary_masks(prepare, frames[1], settings)
    return compare(frames[0], frames[1], masks, (k,), seed=settings.seed)


def summary_masks(prepare: Path, ranks: pd.DataFrame, settings: EvaluateConfig) -> dict[str, np.ndarray]:
    """Groups (SUMMARY_GROUPS) of the distinct cases of some ranks, for `significance.compare`."""
    train_counts = Vocabulary.load(prepare / VOCABULARY).train_counts
    masks = group_masks(
        distinct_cases(ranks),
        tail_counts(prepare, settings),
        train_counts,
        tail_item=settings.tail_item,
        tail_user=settings.tail_user,
    )
    return {name: mask for name, mask in masks.items() if name in SUMMARY_GROUPS}


def tail_counts(prepare: Path, settings: EvaluateConfig) -> np.ndarray:
    """int64 [V]: the counts that settings.popularity_from names, which decide on tail items."""
    train_counts = Vocabulary.load(prepare / VOCABULARY).train_counts
    return train_counts if settings.popularity_from == "train" else user_counts(prepare, len(train_counts))
