"""Figures of the report, as PNG files. matplotlib is optional: extra `report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llmcfsr_merlin.evaluation.groups import DECILES
from llmcfsr_merlin.evaluation.report.tables import mean_values
from llmcfsr_merlin.runtime.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct under colour blindness; the recipe in focus takes the first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777", "#000000")
_MARKERS = "osD^vPX*"


def decile_figure(path: Path, metrics: Sequence[dict], protocol: str, metric: str, focus: str, title: str) -> Path:
    """Quality by popularity decile of the target, one line per recipe; missing values are left out.

    metrics: rows of `group_metrics`, of one dataset and history rule. The users of each decile are counted under it.
    """
    of_both = mean_values([row for row in metrics if (row["protocol"], row["metric"]) == (protocol, metric)])
    values = {(group, recipe): found for (_, _, group, _, recipe), found in of_both.items() if group in DECILES}
    deciles = [decile for decile in DECILES if any(group == decile for group, _ in values)]
    recipes = sorted(dict.fromkeys(recipe for _, recipe in values), key=lambda recipe: recipe != focus)
    figure, axes = _pyplot().subplots(figsize=(9, 4.2), layout="constrained")
    for number, recipe in enumerate(recipes):
        known = [place for place, decile in enumerate(deciles) if (decile, recipe) in values]
        heights = [values[deciles[place], recipe] for place in known]
        axes.errorbar(
            known,
            [mean for mean, *_ in heights],
            yerr=[spread for _, spread, *_ in heights] if any(spread for _, spread, *_ in heights) else None,
            color=_COLOURS[number % len(_COLOURS)],
            # The colours repeat with other markers and dashed lines.
            marker=_MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)],
            linestyle="-" if number < len(_COLOURS) else "--",
            linewidth=2.6 if recipe == focus else 1.4,
            markersize=7 if recipe == focus else 5,
            capsize=2,
            zorder=10 - number,
            label=recipe,
        )
    users = [next(found[2] for (group, _), found in values.items() if group == decile) for decile in deciles]
    names = [decile.removeprefix("decile_") for decile in deciles]
    axes.set_xticks(range(len(deciles)), [f"{name}\n{count:,}" for name, count in zip(names, users)])
    axes.set_xlabel("popularity decile of the target in training (10 = most popular tenth of the items), users below")
    axes.set_ylabel(metric)
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # not over the lines
    return _save(figure, axes, path)


def forest_figure(path: Path, rows: Sequence[dict], title: str) -> Path:
    """Differences of groups with their intervals, one below the other; what is surely no chance (Holm) is filled.

    rows: of `significance.compare`, of one protocol, rule and metric: group, difference, low, high, p_holm, and the
    number of users as `count` or `users`.
    """
    figure, axes = _pyplot().subplots(figsize=(9, 0.8 + 0.36 * len(rows)), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        sure = row["p_holm"] < 0.05
        colour = _COLOURS[0] if row["difference"] > 0 else _COLOURS[1]
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
        inside = colour if sure else "white"
        axes.plot(row["difference"], place, "o", color=colour, markerfacecolor=inside, markersize=7)
    axes.axvline(0, color="#777777", linewidth=1)
    users = (row.get("count", row.get("users")) for row in reversed(rows))
    names = [f"{row['group']} ({count:,})" for row, count in zip(reversed(rows), users)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_title(title + "; filled: p (Holm) < 0.05", loc="left", fontsize=10)
    axes.margins(y=0.08)
    return _save(figure, axes, path)


def training_figure(path: Path, histories: Mapping[str, Sequence[dict]], metric: str = "ndcg@10") -> Path:
    """Loss and validation metric by epoch, one line per recipe.

    histories: recipe -> [{"epoch": 1, "loss": 6.1, "ndcg@10": 0.02, ...}, ...]; values that are missing are skipped.
    """
    figure, pair = _pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for number, (recipe, epochs) in enumerate(histories.items()):
        for axes, name in zip(pair, ("loss", metric)):
            points = [(epoch["epoch"], epoch[name]) for epoch in epochs if epoch.get(name) is not None]
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": "o", "markersize": 3.5, "label": recipe}
            axes.plot([x for x, _ in points], [y for _, y in points], **style)
    pair[0].set_title("training loss", loc="left", fontsize=10)
    pair[1].set_title(f"validation {metric}", loc="left", fontsize=10)
    for axes in pair:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    pair[0].legend(frameon=False, fontsize=8)
    return _save(figure, pair, path)


def _save(figure: "Figure", axes: Any, path: Path) -> Path:
    for one in axes if hasattr(axes, "__len__") else [axes]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)
    return path


def _pyplot() -> ModuleType:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("the report needs matplotlib: pip install 'llmcfsr-merlin[report]'") from error
    matplotlib.use("Agg")  # files only: works without a display
    from matplotlib import pyplot

    return pyplot
