"""Whether people return is counted on validation, and said beside the tables."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.cli.results import said_returns, show_results
from llmcfsr_merlin.config.evaluate_settings import EvaluateConfig
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.training.validation import ranks
from llmcfsr_merlin.training.validation_ranks import repeated_targets
from tests.worlds import noise, write_ingest


def test_repeated_targets_are_counted(tmp_path):
    rows = [[3, 4, 3], [3, 4, 5], [3, 3], [4]]
    pq.write_table(pa.table({ITEM: pa.array(rows, pa.list_(pa.int64()))}), tmp_path / "a.parquet")
    assert repeated_targets([str(tmp_path / "a.parquet")] * 2) == (4, 8)


def test_the_rule_is_one_property():
    assert [EvaluateConfig(exclude_history=masked).history for masked in (True, False)] == ["masked", "kept"]


def test_only_what_is_measured_can_be_shown():
    with pytest.raises(ValueError, match=r"expected shown_ks among ks \(5, 10\), found 20"):
        EvaluateConfig(ks=(5, 10), shown_ks=(10, 20))


def test_a_run_says_it_and_shows_the_cut_offs_asked_for(tmp_path, capsys):
    world = {user: [*items[:-2], items[0], items[-1]] for user, items in noise(60, 30, 6).items()}
    write_ingest(tmp_path, world)
    settings = {"evaluate.baselines": [], "evaluate.ks": [5, 20], "evaluate.shown_ks": [5, 20]}
    config = Config.load(model="item_knn").with_settings(settings)
    run_stages(config, tmp_path, ("prepare", "train", "evaluate"))
    show_results(config, tmp_path)
    shown = capsys.readouterr().out
    assert said_returns(tmp_path).startswith("100.0% of") and said_returns(tmp_path) in shown
    assert "hr@5 (" in shown and "ndcg@20 (" in shown and "hr@10" not in shown
    before = (tmp_path / "evaluate" / "manifest.json").read_bytes()
    run_stages(config.with_settings({"evaluate.shown_ks": [20]}), tmp_path, ("evaluate",))
    assert (tmp_path / "evaluate" / "manifest.json").read_bytes() == before  # what is shown is not what is measured


def test_a_repeat_comes_last_among_the_items_that_a_masked_history_leaves():
    scores = torch.tensor([[9.0, 9, 9, 0.4, 0.9, 0.1, 0.2], [9.0, 9, 9, 0.4, 0.9, 0.1, 0.2]])
    histories, wanted = torch.tensor([[4, 3], [4, 3]]), torch.tensor([4, 6])
    assert ranks(scores.clone(), histories, wanted, True).tolist() == [10, 0], (
        "not found; 6 is the first of the two that are left"
    )
    assert ranks(scores.clone(), histories, wanted, False).tolist() == [0, 2]
