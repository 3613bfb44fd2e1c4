"""How the verbs print a run: stage durations, results, and a user with recommendations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmcfsr_merlin.dataset.names import CASES, ITEM, METRICS
from llmcfsr_merlin.runtime.console import show

if TYPE_CHECKING:
    import pandas as pd

    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.runtime.manifest import Manifest

_RULES = {
    "kept": "whether people return is learned by the scorer `repeats`",
    "masked": "such items are not recommended (evaluate.exclude_history)",
}


def show_stages(manifests: Mapping[str, "Manifest"]) -> None:
    from rich.table import Table

    table = Table(title="stages", title_justify="left")
    for column in ("stage", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, manifest in manifests.items():
        table.add_row(name, f"{manifest.seconds:,.1f}", f"{manifest.peak_memory_mb:,}")
    show(table)


def show_results(config: "Config", directory: Path) -> str:
    """Print the result tables; returns the JSON line."""
    from llmcfsr_merlin.evaluation.cases import said_negatives
    from llmcfsr_merlin.evaluation.report.artefact import artefact_table
    from llmcfsr_merlin.evaluation.report.tables import json_line, result_tables

    metrics, served = read_metrics(config, directory)
    negatives = said_negatives(directory / "evaluate" / CASES)
    names = [f"{metric}@{k}" for k in config.evaluate.shown_ks for metric in ("hr", "ndcg")]
    for table in result_tables(metrics, names=names, negatives=negatives, served=served):
        show(table)
    if (tied := said_ties(directory)) and (artefact := artefact_table(metrics, served, tied)):
        show(artefact)
    if returning := said_returns(directory):
        print(f"{returning}; history {served}: {_RULES[served]}")
    return json_line(metrics)


def read_metrics(config: "Config", directory: Path) -> tuple[list[dict], str]:
    """The metric rows of a run, and the history rule that its recipe serves by."""
    from llmcfsr_merlin.evaluation.groups import with_history

    served = config.evaluate.history
    return with_history(json.loads((directory / "evaluate" / METRICS).read_text()), served), served


def said_returns(directory: Path) -> str:
    """How many validation targets the user had before; "" if an earlier version trained the model."""
    from llmcfsr_merlin.runtime.manifest import Manifest

    counts = Manifest.load(directory / "train").counts
    if not counts.get("validation targets"):
        return ""
    repeated, targets = counts["repeated targets"], counts["validation targets"]
    return f"{repeated / targets:.1%} of {targets:,} validation targets repeat an item of the history"


def said_ties(directory: Path) -> str:
    """A warning if the order of users' last interactions is not decided by distinct times; else ""."""
    from llmcfsr_merlin.runtime.manifest import Manifest

    counts = Manifest.load(directory / "prepare").counts
    if "tied_last_two" not in counts:
        return (
            "it is unknown whether users' last interactions share times (prepared by an earlier version, or extended)"
        )
    if counts.get("untimed"):
        return "the log has an order but no times"
    tied, users = counts["tied_last_two"], counts["users"]
    return f"{tied:,} of {users:,} users' last two interactions have the same time" if tied else ""


def show_user(run_dir: Path | None, user: str | None, history: Sequence[str], found: "pd.DataFrame") -> None:
    """Print a history and its recommendations, by title if the run has titles."""
    from rich.table import Table

    from llmcfsr_merlin.dataset import examples

    items = found[ITEM].tolist()
    known = examples.titles(run_dir, [*history, *items]) if run_dir else {}
    past = "; ".join(known.get(item, item) for item in history[-5:])
    name = "history" if user is None else f"user {user}"
    table = Table(title=f"{name}: {'... ' if len(history) > 5 else ''}{past}", title_justify="left")
    for column in ("", "item", *(["title"] if known else []), "score"):
        table.add_column(column, justify="right" if column in ("", "score") else "left")
    for rank, (item, score) in enumerate(zip(items, found["score"]), 1):
        title = [known.get(item, "")] if known else []
        table.add_row(str(rank), item, *title, f"{score:.3f}")
    show(table)


def paired(ranks: Path, name: str, base_ranks: Path, base: str, directory: Path, config: "Config") -> list[dict]:
    """Print paired tests of one model's stored ranks against another's."""
    from llmcfsr_merlin.evaluation.measure import compare_runs

    return compare_runs(ranks, name, base_ranks, base, directory / "prepare", config.evaluate)
