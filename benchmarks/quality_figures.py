"""Figures of the result pages, as PNG files beside them."""

from pathlib import Path

from quality_rows import metric_rows

from llmcfsr_merlin.evaluation.report.figures import decile_figure, forest_figure

_MOST_LINES = 8


def deciles(folder: Path, page) -> Path | None:
    """NDCG@10 by popularity decile of the best models and the one that the page is about."""
    shown = page.models[:_MOST_LINES]
    rows = page.rows[page.rows["model"].isin(shown) & (page.rows["rule"] == page.rules[0])]
    if not rows["group"].str.startswith("decile_").any():
        return None
    focus = page.focus if page.focus in shown else shown[0]
    title = f"{page.dataset}, {page.split}: NDCG@10 in full ranking, history {page.rules[0]}"
    return decile_figure(folder / f"{page.slug}-deciles.png", metric_rows(rows), "full", "ndcg@10", focus, title)


def forest(folder: Path, page) -> Path | None:
    """Differences to the best other model by group, with the intervals of the paired tests."""
    other = page.best_other()
    rows = page.against(other)
    if rows.empty:
        return None
    title = f"NDCG@10 of {page.focus} minus {other}, 95% interval over users"
    groups = [group for group in page.groups if group in set(rows["group"])]
    rows = rows.set_index("group").loc[groups].reset_index()
    return forest_figure(folder / f"{page.slug}-groups.png", rows.to_dict("records"), title)
