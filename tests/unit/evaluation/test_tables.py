"""Tables name their protocol, mark the best value, and average seeds."""

import io
import json

import pytest
from rich.console import Console
from rich.text import Text

from llmcfsr_merlin.evaluation.report.artefact import artefact_table
from llmcfsr_merlin.evaluation.report.tables import comparison_table, json_line, result_tables


def row(recipe, value, seed=1, protocol="full", group="overall", metric="ndcg@10", history="kept", weights=None):
    return {
        "dataset": "d",
        "recipe": recipe,
        "seed": seed,
        "protocol": protocol,
        "history": history,
        "weights": weights or history,
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
    tables = result_tables([row("a", 0.5), row("a", 0.6, protocol="sampled")], negatives=100)
    full, sampled = map(text, tables)
    assert "full ranking over the catalogue)" in full and "0.5000" in full
    assert "1 positive and 100 uniform negatives" in sampled and "0.6000" in sampled


def test_best_is_bold_and_missing_is_a_dash():
    (table,) = result_tables([row("a", 0.5), row("b", 0.4), row("a", 0.1, group="tail_item")])
    assert list(table.columns[2].cells) == [Text("0.5000", "bold"), "0.4000"]
    assert list(table.columns[3].cells) == [Text("0.1000", "bold"), "-"]


def test_seeds_become_mean_and_deviation():
    (table,) = result_tables([row("a", 0.4, seed=1), row("a", 0.6, seed=2)])
    assert list(table.columns[2].cells) == ["0.5000 ± 0.1414"]


def test_both_rules_stand_in_one_table_each_with_its_best():
    rows = [row("a", 0.5), row("b", 0.4), row("a", 0.6, history="masked"), row("b", 0.7, history="masked")]
    (table,) = result_tables(rows, served="masked")
    assert [list(column.cells) for column in table.columns] == [
        ["a", "b", "a", "b"], ["masked", "masked", "kept", "kept"],
        ["0.6000", Text("0.7000", "bold"), Text("0.5000", "bold"), "0.4000"],
    ]  # fmt: skip
    assert table.caption is None


def test_weights_of_the_other_rule_are_said():
    rows = [row("a", 0.5), row("a", 0.6, history="masked", weights="kept")]
    (table,) = result_tables(rows)
    assert list(table.columns[1].cells) == ["kept", "masked*"] and "other history rule's score weights" in text(table)


def test_sampled_ranks_that_the_rule_does_not_change_stand_once():
    rows = [row(name, value, protocol="sampled", history=rule) for name, rule, value in (
        ("a", "kept", 0.5), ("a", "masked", 0.5), ("b", "kept", 0.4), ("b", "masked", 0.3),
    )]  # fmt: skip
    (table,) = result_tables(rows, served="masked")
    assert list(table.columns[0].cells) == ["a", "b", "b"]
    assert list(table.columns[1].cells) == ["both", "masked", "kept"]


def test_order_artefact_by_hand():
    rows = [
        row(recipe, value, group=f"last_pair_{way}", metric=metric)
        for recipe, ascending, descending in (("a", 0.4, 0.1), ("b", 0.0, 0.2))
        for way, value in (("ascending", ascending), ("descending", descending))
        for metric in ("hr@10", "ndcg@10")
    ]
    table = artefact_table(rows, "kept", "the log has an order but no times")
    assert [list(column.cells) for column in table.columns[:5]] == [
        ["a", "b"], ["kept", "kept"], ["0.4000", "0.0000"], ["0.1000", "0.2000"], ["0.25", "-"]
    ]  # fmt: skip
    shown = text(table)
    assert "last_pair_ascending 50 users" in shown and "no times" in shown and "the order of the file" in shown
    assert artefact_table([row("a", 0.5)], "kept", "") is None


def test_json_line_is_one_line_without_deciles():
    line = json_line([row("a", 0.5), row("a", 0.7, seed=2), row("a", 0.1, group="decile_3")], run="runs/x")
    assert "\n" not in line
    assert json.loads(line) == {
        "run": "runs/x",
        "metrics": {"a": {"full": {"kept": {"overall": {"ndcg@10": pytest.approx(0.6)}}}}},
    }


def test_comparison_table_shows_interval_and_corrected_p():
    found = {
        **{"protocol": "full", "history": "kept", "group": "tail_item", "metric": "hr@10", "count": 9},
        **{"base": 0.1, "value": 0.15},
        **{"difference": 0.05, "relative": 0.5, "low": 0.02, "high": 0.08, "p": 0.001, "p_holm": 0.004},
    }
    shown = text(comparison_table([found], "ours", "sasrec"))
    assert "+0.0500 (+50.0%)" in shown and "+0.0200 .. +0.0800" in shown and "0.0040" in shown
