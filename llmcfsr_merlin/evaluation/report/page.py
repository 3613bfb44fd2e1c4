"""One self-contained HTML page of a run or of several: results, tail, ablation, training, examples.

Everything that comes from data (titles, ids, recipe names) is escaped; the page loads nothing from elsewhere.
"""

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path

from llmcfsr_merlin.dataset.names import KEPT
from llmcfsr_merlin.evaluation.groups import DECILES
from llmcfsr_merlin.evaluation.report.artefact import MEANING, METRICS, artefact_rows, said_users
from llmcfsr_merlin.evaluation.report.figures import decile_figure, training_figure
from llmcfsr_merlin.evaluation.report.tables import (
    BORROWED,
    GROUPS,
    PROTOCOLS,
    history_blocks,
    mean_values,
    protocol_title,
)
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
tbody + tbody { border-top: 2px solid #999; }
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
    served: str = KEPT,
    tied: str = "",
    ablation: Sequence[str] = (),
    histories: Mapping[str, Sequence[dict]] | None = None,
    comparisons: Mapping[str, Sequence[dict]] | None = None,
    examples: Sequence[dict] = (),
) -> Path:
    """Write report.html and its PNGs into `directory`; returns the page's path.

    metrics: rows of `group_metrics`, several datasets and seeds allowed. served: the history rule that comes first and
    that figures show. tied: what is known of the log's times if it calls for the order artefact, else "".
    focus: recipe that is highlighted. base: recipe that relative differences refer to. ablation: recipes that each
    switch one part of `focus` off; they have a table of their own. histories: recipe -> epochs, as in
    figures.training_figure. comparisons: recipe -> rows of `significance.compare` of focus against it. examples: a few
    users, {"user": id, "history": [titles, oldest first], "target": title, "recommended": [titles, best first]}.
    Raises InputError if there are no metrics or if focus or base is not among the recipes.
    """
    recipes = {row["recipe"] for row in metrics}
    for name in (focus, base, *ablation):
        if name not in recipes:
            raise InputError(f"expected metrics of recipe {name!r}, found {', '.join(sorted(recipes)) or 'none'}")
    directory.mkdir(parents=True, exist_ok=True)
    parts = [f"<h1>{escape(title)}</h1>"]
    for dataset in dict.fromkeys(row["dataset"] for row in metrics):
        rows = [row for row in metrics if row["dataset"] == dataset]
        main = [row for row in rows if row["recipe"] not in ablation]
        parts.append(f"<h2>{escape(dataset)}: results</h2>")
        parts.append(
            f'<p class="note">Best value of a column in bold; below it the relative difference to {escape(base)}. '
            "Several seeds: mean ± standard deviation. Groups are of the target (item) and of the history (user). "
            "History: masked, the user's own items are left out of full ranking; kept, they are ranked too. Each rule "
            f"has score weights calibrated for it; epochs were chosen for {served}.</p>"
        )
        parts += _result_tables(main, metric_names, focus, base, negatives, served)
        if tied:
            parts += _artefact(dataset, main, focus, served, tied)
        parts.append(f"<h2>{escape(dataset)}: quality by popularity</h2>")
        for protocol in PROTOCOLS:
            if any(row["protocol"] == protocol and row["group"] in DECILES for row in main):
                what = protocol_title(protocol, negatives=negatives, history=served)
                heading = f"{dataset}, {metric_names[-1]}, {what}"
                path = directory / f"deciles-{_slug(dataset)}-{protocol}.png"
                shown = [row for row in main if row["history"] == served]
                parts.append(_image(decile_figure(path, shown, protocol, metric_names[-1], focus, heading), heading))
        if ablation:
            parts.append(f"<h2>{escape(dataset)}: ablation</h2>")
            parts.append(f'<p class="note">Below each value the relative difference to {escape(focus)}.</p>')
            part = [row for row in rows if row["recipe"] in (focus, *ablation)]
            parts += _result_tables(part, metric_names, focus, focus, negatives, served)
    for other, paired in (comparisons or {}).items():
        parts.append(f"<h2>Paired tests: {escape(focus)} against {escape(other)}</h2>")
        parts.append(
            '<p class="note">Difference of the means over the same users, 95% percentile bootstrap interval, two-sided '
            "sign-flip permutation test, Holm-corrected over the rows of a history rule; bold if p is below "
            "0.05.</p>"
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


def _result_tables(
    rows: Sequence[dict], names: Sequence[str], focus: str, base: str, negatives: int | str, served: str
) -> list[str]:
    values = mean_values(rows)
    tables = []
    for protocol in PROTOCOLS:
        blocks = history_blocks(rows, protocol, served)
        groups = [group for group in GROUPS if any((key[0], key[2]) == (protocol, group) for key in values)]
        if not blocks or not groups:
            continue
        recipes = {recipe for block in blocks for recipe in block.labels}
        users = {key[2]: value[2] for key, value in values.items() if key[0] == protocol}
        top = "".join(
            f'<th class="group" colspan="{len(names)}">{group}<br><small>{users[group]:,} users</small></th>'
            for group in groups
        )
        columns = [(group, name) for group in groups for name in names]
        second = "".join(f"<th{_edge(name, names)}>{name}</th>" for _, name in columns)
        bodies = []
        for rule, labels in blocks:
            body = []
            for recipe, label in labels.items():
                cells = ""
                for group, name in columns:
                    value = _value(values, (protocol, rule, group, name), recipe, recipes, base)
                    cells += f"<td{_edge(name, names)}>{value}</td>"
                mark = ' class="focus"' if recipe == focus else ""
                body.append(f"<tr{mark}><td>{escape(recipe)}</td><td>{label}</td>{cells}</tr>")
            bodies.append(f"<tbody>{''.join(body)}</tbody>")
        starred = any(label.endswith("*") for block in blocks for label in block.labels.values())
        tables.append(
            f"<h3>{protocol}: {protocol_title(protocol, negatives=negatives)}</h3>"
            '<div class="wide"><table><thead><tr><th rowspan="2">recipe</th><th rowspan="2">history</th>'
            f"{top}</tr><tr>{second}</tr></thead>{''.join(bodies)}</table></div>"
            + (f'<p class="note">{BORROWED}</p>' if starred else "")
        )
    return tables


def _value(values: dict, column: tuple[str, str, str, str], recipe: str, recipes: Collection[str], base: str) -> str:
    found = values.get((*column, recipe))
    if found is None:
        return "-"
    mean, spread, _, seeds = found
    below = [f"± {spread:.4f}"] if seeds > 1 else []
    best = max(values[key][0] for other in recipes if (key := (*column, other)) in values)
    text = f"<b>{mean:.4f}</b>" if mean == best else f"{mean:.4f}"
    reference = values.get((*column, base), (0.0,))[0]
    if recipe != base and reference:
        below.append(f"{mean / reference - 1:+.1%}")
    return text + "".join(f"<br><small>{one}</small>" for one in below)


def _artefact(dataset: str, rows: Sequence[dict], focus: str, served: str, tied: str) -> list[str]:
    """Full ranking on users whose last two items ascend or descend in catalogue order."""
    if not (found := artefact_rows(rows, served)):
        return []
    parts = ("ascending", "descending", "desc. / asc.")
    header = "".join(
        f"<th{_edge(part, parts)}>{name}<br><small>{part}</small></th>" for name in METRICS for part in parts
    )
    body = []
    for row in found:
        cells = "".join(f"<td{_edge(part, parts)}>{cell}</td>" for part, cell in zip(parts * len(METRICS), row.cells))
        mark = ' class="focus"' if row.recipe == focus else ""
        body.append(f"<tr{mark}><td>{escape(row.recipe)}</td><td>{row.label}</td>{cells}</tr>")
    return [
        f"<h2>{escape(dataset)}: order artefact</h2>",
        f'<p class="note">Full ranking; {said_users(rows)}; {escape(tied)}. {MEANING}</p>',
        f'<div class="wide"><table><thead><tr><th>recipe</th><th>history</th>{header}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>",
    ]


def _comparison_table(rows: Sequence[dict], focus: str, base: str) -> str:
    body = []
    for row in rows:
        relative = "" if row["relative"] is None else f" <small>({row['relative']:+.1%})</small>"
        difference = f"{row['difference']:+.4f}"
        cells = [
            row["protocol"],
            row["history"],
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
    names = ["protocol", "history", "group", "metric", "users", base, focus, "difference", "interval", "p", "p (Holm)"]
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
