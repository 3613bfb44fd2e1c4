"""The order artefact: what a model gains where the file's item order may stand in for time.

Public logs are often sorted by item within a day. There a user's last two items ascend by id although nobody clicked
them in that order; if they descend, their days certainly differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from llmcfsr_merlin.evaluation.groups import LAST_PAIR
from llmcfsr_merlin.evaluation.report.tables import history_blocks, mean_values

MEANING = (
    "Users by the ids of their last two items. Where times are tied or missing, ids that ascend may be the order of "
    "the file and not of the clicks: a gain on them over descending pairs does not show a better model."
)
METRICS = ("hr@10", "ndcg@10")


class ArtefactRow(NamedTuple):
    """One recipe under one history rule; label: what tables call the rule (tables.history_blocks).

    pairs: by METRICS, the value on ascending and on descending pairs.
    """

    recipe: str
    history: str
    label: str
    pairs: list[tuple[float, float]]

    @property
    def cells(self) -> list[str]:
        """For each metric: ascending, descending, and their ratio."""
        return [
            cell for up, down in self.pairs for cell in (f"{up:.4f}", f"{down:.4f}", f"{down / up:.2f}" if up else "-")
        ]


def artefact_rows(metrics: Sequence[dict], served: str) -> list[ArtefactRow]:
    """Full ranking, means over seeds; none if one of the groups is empty. served: the rule that comes first."""
    values, rows = mean_values(metrics), []
    for rule, labels in history_blocks(metrics, "full", served):
        for recipe, label in labels.items():
            keys = [[("full", rule, group, name, recipe) for group in LAST_PAIR] for name in METRICS]
            if all(key in values for pair in keys for key in pair):
                rows.append(ArtefactRow(recipe, rule, label, [(values[up][0], values[down][0]) for up, down in keys]))
    return rows


def said_users(metrics: Sequence[dict]) -> str:
    """How many users each group has."""
    users = {row["group"]: row["count"] for row in metrics if row["group"] in LAST_PAIR}
    return ", ".join(f"{group} {users[group]:,} users" for group in LAST_PAIR if group in users)


def artefact_table(metrics: Sequence[dict], served: str, tied: str) -> Table | None:
    """The table for the terminal; None if it cannot be measured. tied: what is known of the log's times."""
    rows = artefact_rows(metrics, served)
    if not rows:
        return None
    title = f"order artefact (full ranking; {said_users(metrics)}): {tied}"
    table = Table(title=title, title_justify="left", caption=MEANING, caption_justify="left")
    table.add_column("recipe")
    table.add_column("history")
    for name in METRICS:
        for column in ("ascending", "descending", "desc. / asc."):
            table.add_column(f"{name}\n{column}", justify="right")
    for number, row in enumerate(rows):
        if number and row.history != rows[number - 1].history:
            table.add_section()
        table.add_row(row.recipe, row.label, *row.cells)
    return table
