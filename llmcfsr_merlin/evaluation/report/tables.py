"""Result tables for the terminal and one JSON line. Every number stands under the name of its protocol."""

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from llmcfsr_merlin.dataset.names import KEPT
from llmcfsr_merlin.evaluation.groups import DECILES

GROUPS = ("overall", "tail_item", "head_item", "tail_user", "head_user", "cold_item")
PROTOCOLS = {
    "full": "full ranking over the catalogue",
    "sampled": "sampled ranking, 1 positive and {negatives} uniform negatives",
}


BORROWED = "* ranked with the other history rule's score weights, the only ones known: retrain to calibrate both"


def protocol_title(protocol: str, *, negatives: int | str, history: str | None = None) -> str:
    """A protocol's title. history: the history rule, if it applies.

    >>> protocol_title("full", negatives=100, history="kept")
    'full ranking over the catalogue, history kept'
    """
    rule = "" if history is None else f", history {history}" if protocol == "full" else f", weights for {history}"
    return PROTOCOLS[protocol].format(negatives=negatives) + rule


Key = tuple[str, str, str, str, str]
MeanValue = tuple[float, float, int, int]


def mean_values(metrics: Sequence[dict]) -> dict[Key, MeanValue]:
    """(protocol, history, group, metric, recipe) -> mean over seeds, sample deviation (0 for one), users, seeds."""
    collected: dict[Key, list[dict]] = {}
    for row in metrics:
        key = (row["protocol"], row["history"], row["group"], row["metric"], row["recipe"])
        collected.setdefault(key, []).append(row)
    found = {}
    for key, rows in collected.items():
        values = [row["value"] for row in rows]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
        found[key] = (mean, spread, rows[0]["count"], len(values))
    return found


class Block(NamedTuple):
    """The rows of a table that are ranked by one history rule, and what its column `history` says of each recipe."""

    history: str
    labels: dict[str, str]


def history_blocks(metrics: Sequence[dict], protocol: str, served: str) -> list[Block]:
    """The blocks of a protocol's table, the deployment's rule first.

    A recipe whose ranks are the same by both rules (sampled ranking with one set of weights) stands once, as `both`.
    A star: the weights were chosen for the other rule (BORROWED).
    """
    rows = [row for row in metrics if row["protocol"] == protocol]
    values: dict[tuple[str, str], dict] = {}
    for row in rows:
        of = values.setdefault((row["history"], row["recipe"]), {})
        of[row["seed"], row["group"], row["metric"]] = row["value"]
    borrowed = {(row["history"], row["recipe"]) for row in rows if row["weights"] != row["history"]}
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    rules = sorted(dict.fromkeys(row["history"] for row in rows), key=lambda rule: rule != served)
    once = {
        recipe for recipe in recipes
        if protocol == "sampled" and len(rules) > 1
        and values.get((rules[0], recipe)) == values.get((rules[1], recipe))
    }  # fmt: skip
    blocks = []
    for rule in rules:
        labels = {}
        for recipe in recipes:
            if (rule, recipe) in values and not (recipe in once and rule != rules[0]):
                labels[recipe] = "both" if recipe in once else rule + "*" * ((rule, recipe) in borrowed)
        if labels:
            blocks.append(Block(rule, labels))
    return blocks


def result_tables(
    metrics: Sequence[dict],
    *,
    names: Sequence[str] = ("hr@10", "ndcg@10"),
    groups: Sequence[str] = GROUPS,
    negatives: int | str = 100,
    served: str = KEPT,
) -> list[Table]:
    """One table per protocol and metric: a row per recipe and history rule, a column per group, the best value of a
    column and rule in bold.

    metrics: rows of `group_metrics`, of one dataset; several seeds become mean ± standard deviation. served: the rule
    that comes first.
    """
    values = mean_values(metrics)
    tables = []
    for protocol in PROTOCOLS:
        blocks = history_blocks(metrics, protocol, served)
        recipes = {recipe for block in blocks for recipe in block.labels}
        shown = [group for group in groups if any((key[0], key[2]) == (protocol, group) for key in values)]
        title = f"{protocol}: {protocol_title(protocol, negatives=negatives)}"
        for metric in names:
            if not any((key[0], key[3]) == (protocol, metric) for key in values):
                continue
            table = Table(title=f"{metric} ({title})", title_justify="left", caption_justify="left")
            if any(label.endswith("*") for block in blocks for label in block.labels.values()):
                table.caption = BORROWED
            table.add_column("recipe")
            table.add_column("history")
            for group in shown:
                users = next((v[2] for k, v in values.items() if (k[0], k[2]) == (protocol, group)), 0)
                table.add_column(f"{group}\n{users:,} users", justify="right")
            for rule, labels in blocks:
                for recipe, label in labels.items():
                    cells = [_cell(values, (protocol, rule, group, metric), recipe, recipes) for group in shown]
                    table.add_row(recipe, label, *cells)
                table.add_section()
            tables.append(table)
    return tables


def comparison_table(rows: Sequence[dict], name: str, base: str) -> Table:
    """Rows of `significance.compare` for the terminal."""
    table = Table(title=f"{name} against {base}: paired over users, 95% bootstrap interval, Holm-corrected p")
    words = ("protocol", "history", "group", "metric")
    for column in (*words, base, name, "difference", "interval", "p (Holm)"):
        table.add_column(column, justify="left" if column in words else "right")
    for row in rows:
        style = "bold" if row["p_holm"] < 0.05 else None
        relative = "" if row["relative"] is None else f" ({row['relative']:+.1%})"
        numbers = [f"{row['base']:.4f}", f"{row['value']:.4f}", f"{row['difference']:+.4f}{relative}"]
        interval = f"{row['low']:+.4f} .. {row['high']:+.4f}"
        table.add_row(*(row[word] for word in words), *numbers, interval, f"{row['p_holm']:.4f}", style=style)
    return table


def json_line(metrics: Sequence[dict], **more: object) -> str:
    """One line for programs: {..., "metrics": {recipe: {protocol: {history: {group: {metric: mean over
    seeds}}}}}}.

    Deciles are left out; metrics.json has them.
    """
    tree: dict = {}
    for (protocol, rule, group, metric, recipe), (mean, *_) in mean_values(metrics).items():
        if group not in DECILES:
            at = tree.setdefault(recipe, {}).setdefault(protocol, {}).setdefault(rule, {}).setdefault(group, {})
            at[metric] = round(mean, 6)
    return json.dumps({**more, "metrics": tree}, sort_keys=True)


def _cell(values: dict, column: tuple[str, str, str, str], recipe: str, recipes: Collection[str]) -> str | Text:
    found = values.get((*column, recipe))
    if found is None:
        return "-"
    mean, spread, _, seeds = found
    text = f"{mean:.4f}" + (f" ± {spread:.4f}" if seeds > 1 else "")
    best = max(values[key][0] for other in recipes if (key := (*column, other)) in values)
    return Text(text, "bold") if mean == best and len(recipes) > 1 else text
