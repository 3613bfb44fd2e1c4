"""Result tables for the terminal and one JSON line. Every number stands under the name of its protocol."""

import json
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llmcfsr_merlin.evaluation.groups import DECILES

GROUPS = ("overall", "tail_item", "head_item", "tail_user", "head_user", "cold_item")
PROTOCOLS = {
    "full": "full ranking over the catalogue",
    "sampled": "sampled ranking, 1 positive and {negatives} uniform negatives",
}


def protocol_title(protocol: str, *, negatives: int | str, exclude_history: bool) -> str:
    """What a protocol ranks, in words.

    >>> protocol_title("full", negatives=100, exclude_history=False)
    'full ranking over the catalogue, history kept'
    """
    if protocol == "full":
        return f"{PROTOCOLS[protocol]}, history {'excluded' if exclude_history else 'kept'}"
    return PROTOCOLS[protocol].format(negatives=negatives)


def mean_values(metrics: Sequence[dict]) -> dict[tuple[str, str, str, str], tuple[float, float, int, int]]:
    """(protocol, group, metric, recipe) -> mean over seeds, sample deviation (0 for one seed), users, seeds."""
    collected: dict[tuple, list[dict]] = {}
    for row in metrics:
        collected.setdefault((row["protocol"], row["group"], row["metric"], row["recipe"]), []).append(row)
    found = {}
    for key, rows in collected.items():
        values = [row["value"] for row in rows]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
        found[key] = (mean, spread, rows[0]["count"], len(values))
    return found


def result_tables(
    metrics: Sequence[dict],
    *,
    names: Sequence[str] = ("hr@10", "ndcg@10"),
    groups: Sequence[str] = GROUPS,
    negatives: int | str = 100,
    exclude_history: bool = False,
) -> list[Table]:
    """One table a protocol and metric: a row a recipe, a column a group, the best value of a column in bold.

    metrics: rows of `group_metrics`, of one dataset; several seeds become mean ± standard deviation.
    """
    values = mean_values(metrics)
    tables = []
    for protocol in PROTOCOLS:
        recipes = list(dict.fromkeys(key[3] for key in values if key[0] == protocol))
        shown = [group for group in groups if any(key[:2] == (protocol, group) for key in values)]
        title = f"{protocol}: {protocol_title(protocol, negatives=negatives, exclude_history=exclude_history)}"
        for metric in names:
            if not any(key[0] == protocol and key[2] == metric for key in values):
                continue
            table = Table(title=f"{metric} ({title})", title_justify="left")
            table.add_column("recipe")
            for group in shown:
                users = next((v[2] for k, v in values.items() if k[:2] == (protocol, group)), 0)
                table.add_column(f"{group}\n{users:,} users", justify="right")
            for recipe in recipes:
                table.add_row(recipe, *[_cell(values, protocol, group, metric, recipe, recipes) for group in shown])
            tables.append(table)
    return tables


def comparison_table(rows: Sequence[dict], name: str, base: str) -> Table:
    """Rows of `significance.compare` for the terminal."""
    table = Table(title=f"{name} against {base}: paired over users, 95% bootstrap interval, Holm-corrected p")
    for column in ("protocol", "group", "metric", base, name, "difference", "interval", "p (Holm)"):
        table.add_column(column, justify="left" if column in ("protocol", "group", "metric") else "right")
    for row in rows:
        style = "bold" if row["p_holm"] < 0.05 else None
        relative = "" if row["relative"] is None else f" ({row['relative']:+.1%})"
        numbers = [f"{row['base']:.4f}", f"{row['value']:.4f}", f"{row['difference']:+.4f}{relative}"]
        interval = f"{row['low']:+.4f} .. {row['high']:+.4f}"
        table.add_row(
            row["protocol"], row["group"], row["metric"], *numbers, interval, f"{row['p_holm']:.4f}", style=style
        )
    return table


def json_line(metrics: Sequence[dict], **more) -> str:
    """One line for programs: {..., "metrics": {recipe: {protocol: {group: {metric: mean over seeds}}}}}.

    Deciles are left out; metrics.json has them.
    """
    tree: dict = {}
    for (protocol, group, metric, recipe), (mean, *_) in mean_values(metrics).items():
        if group not in DECILES:
            at = tree.setdefault(recipe, {}).setdefault(protocol, {}).setdefault(group, {})
            at[metric] = round(mean, 6)
    return json.dumps({**more, "metrics": tree}, sort_keys=True)


def _cell(values: dict, protocol: str, group: str, metric: str, recipe: str, recipes: Sequence[str]) -> str | Text:
    found = values.get((protocol, group, metric, recipe))
    if found is None:
        return "-"
    mean, spread, _, seeds = found
    text = f"{mean:.4f}" + (f" ± {spread:.4f}" if seeds > 1 else "")
    best = max(values[key][0] for other in recipes if (key := (protocol, group, metric, other)) in values)
    return Text(text, "bold") if mean == best and len(recipes) > 1 else text
