"""Tables name their protocol, mark the best value, and average seeds."""

import io
import json

import pytest
from rich.console import Console
from rich.text import Text

from llmcfsr_merlin.evaluation.report.tables import comparison_table, json_line, result_tables


def row(recipe, value, seed=1, protocol="full", group="overall", metric="ndcg@10"):
    return {
        "dataset": "d",
        "recipe": recipe,
        "seed": seed,
        "protocol": protocol,
        "group": group,
        "metric": metric,
        "value": value,
        "count": 50,
    }


def text(renderable):
    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return " ".join(console.file.getvalue().split())  # rich wraps a title to the width of its table


def test_every_table_names_its_protocol():
    tables = result_tables([row("a", 0.5), row("a", 0.6, protocol="sampled")], negatives=100, exclude_history=True)
    full, sampled = map(text, tables)
    assert "full ranking over the catalogue, history excluded" in full and "0.5000" in full
    assert "1 positive and 100 uniform negatives" in sampled and "0.6000" in sampled


def test_best_is_bold_and_missing_is_a_dash():
    (table,) = result_tables([row("a", 0.5), row("b", 0.4), row("a", 0.1, group="tail_item")])
    assert list(table.columns[1].cells) == [Text("0.5000", "bold"), "0.4000"]
    assert list(table.columns[2].cells) == [Text("0.1000", "bold"), "-"]


def test_seeds_become_mean_and_deviation():
    (table,) = result_tables([row("a", 0.4, seed=1), row("a", 0.6, seed=2)])
    assert list(table.columns[1].cells) == ["0.5000 ± 0.1414"]


def test_json_line_is_one_line_without_deciles():
    line = json_line([row("a", 0.5), row("a", 0.7, seed=2), row("a", 0.1, group="decile_3")], run="runs/x")
    assert "\n" not in line
    assert json.loads(line) == {
        "run": "runs/x",
        "metrics": {"a": {"full": {"overall": {"ndcg@10": pytest.approx(0.6)}}}},
    }


def test_comparison_table_shows_interval_and_corrected_p():
    found = {
        **{"protocol": "full", "group": "tail_item", "metric": "hr@10", "base": 0.1, "value": 0.15, "count": 9},
        **{"difference": 0.05, "relative": 0.5, "low": 0.02, "high": 0.08, "p": 0.001, "p_holm": 0.004},
    }
    shown = text(comparison_table([found], "ours", "sasrec"))
    assert "+0.0500 (+50.0%)" in shown and "+0.0200 .. +0.0800" in shown and "0.0040" in shown
