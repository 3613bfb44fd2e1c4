"""One self-contained HTML page of a run or of several: results, tail, ablation, training, examples.

Everything that comes from data (titles, ids, recipe names) is escaped; the page loads nothing from elsewhere.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmcfsr_merlin.evaluation.groups import DECILES
from llmcfsr_merlin.evaluation.report.figures import decile_figure, training_figure
from llmcfsr_merlin.evaluation.report.tables import GROUPS, PROTOCOLS, mean_values, protocol_title
from llmcfsr_merlin.runtime.errors import InputError

PAGE = "report.html"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 82rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .4rem 0 1.2rem; }
th, td { padding: .28rem .45rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
thead tr:first-child th:first-child, td:first-child, td.words, th.words { text-align: left; }
td.words { white-space: normal; vertical-align: top; }
td small, th small { color: #666; font-weight: normal; } tr.focus { background: #eef5fb; }
th.group { border-left: 2px solid #ccc; } td.group { border-left: 2px solid #ccc; }
img { max-width: 100%; } .hit { background: #d9f2df; font-weight: 600; } .note { color: #555; max-width: 55rem; }
ol { margin: .1rem 0; padding-left: 1.5rem; }
"""


def write_report(
    directory: Path,
    metrics: Sequence[dict],
    *,
    title: str,
    focus: str,
    base: str,
    metric_names: Sequence[str] = ("hr@10", "ndcg@10"),
    negatives: int | str = 100,
    exclude_history: bool = False,
    ablation: Sequence[str] = (),
    histories: Mapping[str, Sequence[dict]] | None = None,
    comparisons: Mapping[str, Sequence[dict]] | None = None,
    examples: Sequence[dict] = (),
) -> Path:
    """Write report.html and its PNGs into `directory`; returns the page's path.

    metrics: rows {dataset, recipe, seed, protocol, group, metric, value, count}, several datasets and seeds allowed.
    focus: recipe that is highlighted. base: recipe that relative differences refer to. ablation: recipes that each
    switch one part of `focus` off; they have a table of their own. histories: recipe -> epochs, as in
    figures.training_figure. comparisons: recipe -> rows of `significance.compare` of focus against it. examples: a few
    users, {"user": id, "history": [titles, oldest first], "target": title, "recommended": [titles, best first]}.
    Raises InputError where there are no metrics or where focus or base is not among the recipes.
    """
    recipes = {row["recipe"] for row in metrics}
    for name in (focus, base, *ablation):
        if name not in recipes:
            raise InputError(f"expected metrics of recipe {name!r}, found {', '.join(sorted(recipes)) or 'none'}")
    directory.mkdir(parents=True, exist_ok=True)
    words: dict[str, Any] = {"negatives": negatives, "exclude_history": exclude_history}
    parts = [f"<h1>{escape(title)}</h1>"]
    for dataset in dict.fromkeys(row["dataset"] for row in metrics):
        rows = [row for row in metrics if row["dataset"] == dataset]
        main = [row for row in rows if row["recipe"] not in ablation]
        parts.append(f"<h2>{escape(dataset)}: results</h2>")
        parts.append(
            f'<p class="note">Best value of a column in bold; below it the relative difference to {escape(base)}. '
            "Several seeds: mean ± standard deviation. Groups are of the target (item) and of the history (user).</p>"
        )
        parts += _result_tables(main, metric_names, focus, base, words)
        parts.append(f"<h2>{escape(dataset)}: quality by popularity</h2>")
        for protocol in PROTOCOLS:
            if any(row["protocol"] == protocol and row["group"] in DECILES for row in main):
                heading = f"{dataset}, {metric_names[-1]}, {protocol_title(protocol, **words)}"
                path = directory / f"deciles-{_slug(dataset)}-{protocol}.png"
                parts.append(_image(decile_figure(path, main, protocol, metric_names[-1], focus, heading), heading))
        if ablation:
            parts.append(f"<h2>{escape(dataset)}: ablation</h2>")
            parts.append(f'<p class="note">Below each value the relative difference to {escape(focus)}.</p>')
            part = [row for row in rows if row["recipe"] in (focus, *ablation)]
            parts += _result_tables(part, metric_names, focus, focus, words)
    for other, paired in (comparisons or {}).items():
        parts.append(f"<h2>Paired tests: {escape(focus)} against {escape(other)}</h2>")
        parts.append(
            '<p class="note">Difference of the means over the same users, 95% percentile bootstrap interval, two-sided '
            "sign-flip permutation test, Holm-corrected over the whole table; bold where p is below 0.05.</p>"
        )
        parts.append(_comparison_table(paired, focus, other))
    if histories:
        parts.append("<h2>Training</h2>")
        parts.append(
            _image(training_figure(directory / "training.png", histories), "Loss and validation metric by epoch")
        )
    if examples:
        parts.append("<h2>A few users</h2>" + _example_table(examples))
    page = directory / PAGE
    page.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n",
        encoding="utf-8",
    )
    return page


def _result_tables(rows: Sequence[dict], names: Sequence[str], focus: str, base: str, words: dict) -> list[str]:
    values = mean_values(rows)
    tables = []
    for protocol in PROTOCOLS:
        recipes = list(dict.fromkeys(key[3] for key in values if key[0] == protocol))
        groups = [group for group in GROUPS if any(key[:2] == (protocol, group) for key in values)]
        if not recipes or not groups:
            continue
        users = {key[1]: value[2] for key, value in values.items() if key[0] == protocol}
        top = "".join(
            f'<th class="group" colspan="{len(names)}">{group}<br><small>{users[group]:,} users</small></th>'
            for group in groups
        )
        columns = [(group, name) for group in groups for name in names]
        second = "".join(f"<th{_edge(name, names)}>{name}</th>" for _, name in columns)
        body = []
        for recipe in recipes:
            cells = "".join(
                f"<td{_edge(name, names)}>{_value(values, protocol, group, name, recipe, recipes, base)}</td>"
                for group, name in columns
            )
            mark = ' class="focus"' if recipe == focus else ""
            body.append(f"<tr{mark}><td>{escape(recipe)}</td>{cells}</tr>")
        tables.append(
            f"<h3>{protocol}: {protocol_title(protocol, **words)}</h3>"
            f'<div class="wide"><table><thead><tr><th rowspan="2">recipe</th>{top}</tr><tr>{second}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
    return tables


def _value(values: dict, protocol: str, group: str, metric: str, recipe: str, recipes: Sequence[str], base: str) -> str:
    found = values.get((protocol, group, metric, recipe))
    if found is None:
        return "-"
    mean, spread, _, seeds = found
    below = [f"± {spread:.4f}"] if seeds > 1 else []
    best = max(values[key][0] for other in recipes if (key := (protocol, group, metric, other)) in values)
    text = f"<b>{mean:.4f}</b>" if mean == best else f"{mean:.4f}"
    reference = values.get((protocol, group, metric, base), (0.0,))[0]
    if recipe != base and reference:
        below.append(f"{mean / reference - 1:+.1%}")
    return text + "".join(f"<br><small>{one}</small>" for one in below)


def _comparison_table(rows: Sequence[dict], focus: str, base: str) -> str:
    body = []
    for row in rows:
        relative = "" if row["relative"] is None else f" <small>({row['relative']:+.1%})</small>"
        difference = f"{row['difference']:+.4f}"
        cells = [
            row["protocol"],
            row["group"],
            row["metric"],
            f"{row['count']:,}",
            f"{row['base']:.4f}",
            f"{row['value']:.4f}",
            (f"<b>{difference}</b>" if row["p_holm"] < 0.05 else difference) + relative,
            f"{row['low']:+.4f} .. {row['high']:+.4f}",
            f"{row['p']:.4f}",
            f"{row['p_holm']:.4f}",
        ]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    names = ["protocol", "group", "metric", "users", base, focus, "difference", "interval", "p", "p (Holm)"]
    header = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _example_table(examples: Sequence[dict]) -> str:
    body = []
    for example in examples:
        history = "".join(f"<li>{escape(str(title))}</li>" for title in example["history"])
        shown = "".join(
            f"<li{' class=hit' if title == example['target'] else ''}>{escape(str(title))}</li>"
            for title in example["recommended"]
        )
        body.append(
            f"<tr><td>{escape(str(example['user']))}</td><td class='words'><ol>{history}</ol></td>"
            f"<td class='words'>{escape(str(example['target']))}</td><td class='words'><ol>{shown}</ol></td></tr>"
        )
    names = ("history, oldest first", "held-out item", "recommended")
    header = "<th>user</th>" + "".join(f'<th class="words">{name}</th>' for name in names)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _image(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(text)}" src="data:image/png;base64,{data}"></p>'


def _edge(name: str, names: Sequence[str]) -> str:
    return ' class="group"' if name == names[0] else ""


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
