"""One self-contained HTML page of a run or of several: results, tail, ablation, training, examples.

What stands on the page is gathered here; page.html.j2 lays it out and escapes all that comes from data.
"""

import base64
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcfsr_merlin.dataset.names import KEPT
from llmcfsr_merlin.evaluation.groups import DECILES, SHUFFLED
from llmcfsr_merlin.evaluation.report.artefact import MEANING, METRICS, artefact_rows, said_users
from llmcfsr_merlin.evaluation.report.figures import decile_figure, forest_figure, training_figure
from llmcfsr_merlin.evaluation.report.headline import headline
from llmcfsr_merlin.evaluation.report.tables import (
    BORROWED,
    GROUPS,
    PROTOCOLS,
    history_blocks,
    mean_values,
    protocol_title,
)
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency

if TYPE_CHECKING:
    import jinja2

PAGE = "report.html"
LIST_METRICS = tuple(
    f"{name}@10" for name in ("coverage", "gini", "arp", "novelty", "ild", "serendipity", "calibration")
)


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
    returning: str = "",
    ablation: Sequence[str] = (),
    histories: Mapping[str, Sequence[dict]] | None = None,
    comparisons: Mapping[str, Sequence[dict]] | None = None,
    examples: Sequence[dict] = (),
) -> Path:
    """Write report.html and its PNGs into `directory`; returns the page's path.

    metrics: rows of `group_metrics`, several datasets and seeds allowed. served: the history rule that comes first and
    that figures show. tied: what is known of the log's times if it calls for the order artefact, else "".
    returning: how many people return to an item, in a sentence without a full stop.
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
    datasets: list[dict[str, Any]] = []
    for dataset in dict.fromkeys(row["dataset"] for row in metrics):
        rows = [row for row in metrics if row["dataset"] == dataset]
        main = [row for row in rows if row["recipe"] not in ablation]
        shown = [row for row in main if row["history"] == served]
        figures = []
        for protocol in PROTOCOLS:
            if any(row["protocol"] == protocol and row["group"] in DECILES for row in main):
                what = protocol_title(protocol, negatives=negatives, history=served)
                heading = f"{dataset}, {metric_names[-1]}, {what}"
                path = directory / f"deciles-{_slug(dataset)}-{protocol}.png"
                path = decile_figure(path, shown, protocol, metric_names[-1], focus, heading)
                figures.append(_Figure.read(path, heading))
        part = [row for row in rows if row["recipe"] in (focus, *ablation)]
        others = [name for name in dict.fromkeys(row["recipe"] for row in main) if name != focus]
        compared = comparisons or {}
        answer = headline(main, compared, focus=focus, others=others, metric=metric_names[-1], served=served)
        forest = None
        if answer and (tested := [line.test for line in answer.lines if line.test]):
            heading = f"{metric_names[-1]} of {focus} minus {answer.lines[0].other}, 95% interval over users"
            path = forest_figure(directory / f"groups-{_slug(dataset)}.png", tested, heading)
            forest = _Figure.read(path, heading)
        datasets.append(
            {
                "name": dataset,
                "answer": answer,
                "forest": forest,
                "lists": _list_table(main, served),
                "shuffled": _shuffled(main, served, metric_names[-1]),
                "results": _result_tables(main, metric_names, base, negatives, served),
                "artefact": artefact_rows(main, served) if tied else [],
                "users": said_users(main),
                "figures": figures,
                "ablation": _result_tables(part, metric_names, focus, negatives, served) if ablation else [],
            }
        )
    training = None
    if histories:
        path = training_figure(directory / "training.png", histories)
        training = _Figure.read(path, "Loss and validation metric by epoch")
    page = directory / PAGE
    page.write_text(
        _template().render(
            title=title,
            focus=focus,
            base=base,
            metric_names=metric_names,
            served=served,
            tied=tied,
            returning=returning,
            datasets=datasets,
            artefact_meaning=MEANING,
            artefact_metrics=METRICS,
            comparisons=comparisons or {},
            training=training,
            examples=examples,
        ),
        encoding="utf-8",
    )
    return page


def _list_table(rows: Sequence[dict], served: str) -> tuple[list[str], dict[str, list[str]]]:
    """Measures of the ten items that are shown (lists.py), and recipe -> their values."""
    values = mean_values([row for row in rows if row["history"] == served and row["metric"] in LIST_METRICS])
    recipes = list(dict.fromkeys(key[4] for key in values))
    names = [name for name in LIST_METRICS if any(key[3] == name for key in values)]
    found = {}
    for recipe in recipes:
        cells = (values.get(("full", served, "overall", name, recipe)) for name in names)
        found[recipe] = ["-" if one is None else f"{one[0]:.1f}" if one[0] >= 100 else f"{one[0]:.4f}" for one in cells]
    return names, found


def _shuffled(rows: Sequence[dict], served: str, metric: str) -> dict[str, tuple[str, str, str]]:
    """Recipe -> its value, that with histories shuffled, and their ratio (evaluate.shuffle_test)."""
    values = mean_values([row for row in rows if row["history"] == served and row["metric"] == metric])
    found = {}
    for (_, _, group, _, recipe), (value, *_) in values.items():
        if group == SHUFFLED:
            before = values["full", served, "overall", metric, recipe][0]
            found[recipe] = (f"{before:.4f}", f"{value:.4f}", f"{value / before:.2f}" if before else "-")
    return found


class _Cell(NamedTuple):
    """A value; best: of its column. below: the deviation over seeds and the relative difference, if there are any."""

    value: str
    best: bool
    below: list[str]


class _Row(NamedTuple):
    recipe: str
    history: str
    cells: list[_Cell | None]


class _Table(NamedTuple):
    """groups: name -> users; blocks: the rows of each history rule, a cell a group and metric."""

    title: str
    groups: dict[str, int]
    blocks: list[list[_Row]]
    note: str


class _Figure(NamedTuple):
    """data: the PNG in base64."""

    text: str
    data: str

    @classmethod
    def read(cls, path: Path, text: str) -> "_Figure":
        return cls(text, base64.b64encode(path.read_bytes()).decode())


def _result_tables(
    rows: Sequence[dict], names: Sequence[str], base: str, negatives: int | str, served: str
) -> list[_Table]:
    values = mean_values(rows)
    tables = []
    for protocol in PROTOCOLS:
        blocks = history_blocks(rows, protocol, served)
        users = {key[2]: value[2] for key, value in values.items() if key[0] == protocol}
        groups = {group: users[group] for group in GROUPS if group in users}
        if not blocks or not groups:
            continue
        recipes = {recipe for block in blocks for recipe in block.labels}
        columns = [(group, name) for group in groups for name in names]
        bodies: list[list[_Row]] = []
        for rule, labels in blocks:
            bodies.append([])
            for recipe, label in labels.items():
                cells = [_cell(values, (protocol, rule, *column), recipe, recipes, base) for column in columns]
                bodies[-1].append(_Row(recipe, label, cells))
        starred = any(label.endswith("*") for block in blocks for label in block.labels.values())
        title = f"{protocol}: {protocol_title(protocol, negatives=negatives)}"
        tables.append(_Table(title, groups, bodies, BORROWED if starred else ""))
    return tables


def _cell(
    values: dict, column: tuple[str, str, str, str], recipe: str, recipes: Collection[str], base: str
) -> _Cell | None:
    found = values.get((*column, recipe))
    if found is None:
        return None
    mean, spread, _, seeds = found
    below = [f"± {spread:.4f}"] if seeds > 1 else []
    best = max(values[key][0] for other in recipes if (key := (*column, other)) in values)
    reference = values.get((*column, base), (0.0,))[0]
    if recipe != base and reference:
        below.append(f"{mean / reference - 1:+.1%}")
    return _Cell(f"{mean:.4f}", mean == best, below)


def _template() -> "jinja2.Template":
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency("the report's page needs jinja2: pip install 'llmcfsr-merlin[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
