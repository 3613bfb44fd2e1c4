"""The first screen of the page: is the model better than the best other one, for whom, and how sure is that."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmcfsr_merlin.evaluation.groups import SUMMARY_GROUPS
from llmcfsr_merlin.evaluation.report.tables import MeanValue, mean_values


class Line(NamedTuple):
    """A group of users: values of the model and of the best other one, its name and, if paired tests are there, the
    difference to it over the same users, its interval and whether Holm's p is below 0.05."""

    group: str
    users: int
    value: float
    other: str
    reference: float
    test: dict | None

    @property
    def relative(self) -> str:
        return f"{self.value / self.reference - 1:+.1%}" if self.reference else "the other finds none"


class Headline(NamedTuple):
    """lines: the groups, overall first. seeds: of the model."""

    metric: str
    seeds: int
    lines: list[Line]

    @property
    def verdict(self) -> str:
        """Better, Worse, or not told apart: by the paired test if there is one, else by the means alone."""
        first = self.lines[0]
        if first.test is None:
            return "Better, untested" if first.value > first.reference else "Not better, untested"
        if first.test["p_holm"] >= 0.05:
            return "Not told apart"
        return "Better" if first.test["difference"] > 0 else "Worse"


def headline(
    metrics: Sequence[dict],
    comparisons: Mapping[str, Sequence[dict]],
    *,
    focus: str,
    others: Sequence[str],
    metric: str,
    served: str,
) -> Headline | None:
    """Full ranking by the rule that is served, against the best of `others` overall; None if there is nothing to
    compare. metrics: rows of `group_metrics`; comparisons: recipe -> rows of `significance.compare` against it."""
    values = mean_values([row for row in metrics if row["metric"] == metric and row["history"] == served])

    def of(recipe: str, group: str) -> MeanValue | None:
        return values.get(("full", served, group, metric, recipe))

    ranked = {recipe: found[0] for recipe in others if (found := of(recipe, "overall"))}
    ours = of(focus, "overall")
    if ours is None or not ranked:
        return None
    best = max(ranked, key=ranked.__getitem__)
    tests = {
        row["group"]: row for row in comparisons.get(best, ())
        if (row["protocol"], row["history"], row["metric"]) == ("full", served, metric)
    }  # fmt: skip
    lines = []
    for group in SUMMARY_GROUPS:
        mine, theirs = of(focus, group), of(best, group)
        if mine and theirs:
            lines.append(Line(group, mine[2], mine[0], best, theirs[0], tests.get(group)))
    return Headline(metric, ours[3], lines)
