"""The evaluate stage's work: every recipe ranked on the same stored cases, ranks and metrics written.

>>> recipes = {"llm_cfsr": lambda: ranker.scores, "ease": lambda: fit_baseline("ease", ...)}  # doctest: +SKIP
>>> metrics = measure(out, run / "prepare", recipes, dataset="beauty", ...)                   # doctest: +SKIP
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.config.schema import EvaluateConfig
from llmcfsr_merlin.dataset.names import CASES, METRICS, RANKS, USER, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation.cases import said_negatives, write_cases
from llmcfsr_merlin.evaluation.groups import DECILES, catalogue_metrics, group_masks, group_metrics, user_counts
from llmcfsr_merlin.evaluation.ranks import RECIPE, Scorer, rank_users, read_ranks, write_ranks
from llmcfsr_merlin.evaluation.significance import compare
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import write_json


def measure(
    directory: Path,
    prepare: Path,
    recipes: Mapping[str, Callable[[], Scorer]],
    *,
    dataset: str,
    seed: int,
    max_length: int,
    settings: EvaluateConfig,
) -> list[dict]:
    """Write CASES, RANKS and METRICS into `directory`; returns the metric rows.

    recipes: name -> function that makes the scorer, called one after the other so that only one is in memory.
    seed: the training seed, a label of the rows; the candidates have their own, settings.seed.
    max_length: longest history that the scorers read.
    """
    train_counts = Vocabulary.load(prepare / VOCABULARY).train_counts
    negatives = settings.sampled_negatives if "sampled" in settings.protocols else 0
    write_cases(prepare, directory / CASES, len(train_counts), negatives=negatives, seed=settings.seed)
    protocols = settings.protocols
    if (found := said_negatives(directory / CASES)) != str(negatives):
        what = f"users are ranked against {found}, all that they had nothing to do with"
        if found == "0" and "full" in protocols:
            protocols, what = ("full",), "everybody had all of them, so only the full protocol is measured"
        print(
            f"warning: the catalogue has too few items for evaluate.sampled_negatives={negatives}: {what}",
            file=sys.stderr,
        )
    counts = tail_counts(prepare, settings)
    metrics: list[dict] = []

    def ranked(name: str) -> pd.DataFrame:
        result = rank_users(
            recipes[name](),
            directory / CASES,
            train_counts=train_counts,
            max_length=max_length,
            protocols=protocols,
            ks=settings.ks,
            exclude_history=settings.exclude_history,
            batch_size=settings.batch_size,
            name=name,
        )
        masks = group_masks(
            result.ranks, counts, train_counts, tail_item=settings.tail_item, tail_user=settings.tail_user
        )
        about = {"dataset": dataset, "recipe": name, "seed": seed}
        metrics.extend(group_metrics(result.ranks, masks, settings.ks, **about))
        metrics.extend(catalogue_metrics(result.catalogue, len(result.ranks), **about))
        return result.ranks

    write_ranks(directory / RANKS, ((name, seed, ranked(name)) for name in recipes))
    write_json(directory / METRICS, metrics)
    return metrics


def compare_runs(
    ranks: Path, recipe: str, base_ranks: Path, base: str, prepare: Path, settings: EvaluateConfig, k: int = 10
) -> list[dict]:
    """Paired comparison of two recipes, of one run or of two (RANKS files), by the six main groups.

    prepare: the prepare stage that both were ranked on. Returns rows of `significance.compare`; InputError where a
    recipe is missing or the runs were not measured on the same users and targets.
    """
    frames = []
    for path, name in ((ranks, recipe), (base_ranks, base)):
        frame = read_ranks(path, name)
        if frame.empty:
            known = ", ".join(sorted(read_ranks(path)[RECIPE].unique()))
            raise InputError(f"{path}: expected ranks of recipe {name!r}, found {known}")
        frames.append(frame)
    train_counts = Vocabulary.load(prepare / VOCABULARY).train_counts
    users = frames[1].drop_duplicates(USER)
    masks = group_masks(
        users,
        tail_counts(prepare, settings),
        train_counts,
        tail_item=settings.tail_item,
        tail_user=settings.tail_user,
    )
    masks = {name: mask for name, mask in masks.items() if name not in DECILES}
    return compare(frames[0], frames[1], masks, (k,), seed=settings.seed)


def tail_counts(prepare: Path, settings: EvaluateConfig) -> np.ndarray:
    """int64 [V]: the counts that settings.popularity_from names, which decide on tail items."""
    train_counts = Vocabulary.load(prepare / VOCABULARY).train_counts
    return train_counts if settings.popularity_from == "train" else user_counts(prepare, len(train_counts))
