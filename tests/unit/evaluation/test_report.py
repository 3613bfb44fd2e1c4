"""The report: self-contained, escaped, with every part that it was given data for."""

import builtins
import re

import numpy as np
import pandas as pd
import pytest

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.evaluation.groups import group_masks, group_metrics
from llmcfsr_merlin.evaluation.report import figures
from llmcfsr_merlin.evaluation.report.headline import headline
from llmcfsr_merlin.evaluation.report.page import write_report
from llmcfsr_merlin.evaluation.significance import compare
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency

pytest.importorskip("matplotlib", reason="extra `report`")


@pytest.fixture(scope="module")
def material():
    generator = np.random.default_rng(0)
    counts = np.concatenate([np.zeros(FIRST_ITEM, np.int64), generator.poisson(3, 200) ** 2])
    users = pd.DataFrame(
        {
            "user_id": [f"u{number}" for number in range(600)],
            "target": generator.integers(FIRST_ITEM, 203, 600),
            "last": generator.integers(FIRST_ITEM, 203, 600),
            "history_length": generator.integers(2, 15, 600),
        }
    )
    metrics, frames = [], {}
    for recipe, quality in (("llm_cfsr", 0.5), ("llm_cfsr-no_match", 0.45), ("sasrec", 0.3), ("popularity", 0.1)):
        for seed in (1, 2):
            ranks = np.where(generator.random(600) < quality, 1, generator.integers(1, 101, 600))
            frames[recipe] = users.assign(
                rank_full_masked=np.ceil(ranks / 3).astype(int), rank_full_kept=ranks,
                rank_sampled_masked=np.ceil(ranks / 2).astype(int), rank_sampled_kept=np.ceil(ranks / 2).astype(int),
            )  # fmt: skip
            masks = group_masks(frames[recipe], counts, counts, tail_item=4, tail_user=6, order=np.arange(len(counts)))
            metrics += group_metrics(frames[recipe], masks, (10,), dataset="toy", recipe=recipe, seed=seed)
    overall = {name: masks[name] for name in ("overall", "tail_item")}
    comparisons = compare(frames["llm_cfsr"], frames["sasrec"], overall, resamples=2000)
    return metrics, comparisons


def test_whole_page(tmp_path, material):
    metrics, comparisons = material
    page = write_report(
        tmp_path,
        metrics,
        title="Toy <run>",
        served="masked",
        tied="5 of 600 users' last two interactions share one time",
        focus="llm_cfsr",
        base="sasrec",
        ablation=("llm_cfsr-no_match",),
        histories={"llm_cfsr": [{"epoch": e, "loss": 7 / e, "ndcg@10": 0.1 * e} for e in (1, 2, 3)]},
        comparisons={"sasrec": comparisons},
        examples=[{"user": "u1", "history": ["Soap & <b>", "Brush"], "target": "Comb", "recommended": ["Comb", "Oil"]}],
    )
    text = page.read_text()
    for part in (
        "Toy &lt;run&gt;",
        "toy: is it better, for whom, how sure",
        "toy: ablation",
        "Paired tests",
        "<h2>Training",
        "A few users",
        "Soap &amp; &lt;b&gt;",
    ):
        assert part in text
    assert "full ranking over the catalogue, history masked" in text and "100 uniform negatives" in text
    full, sampled = (part.split("<h2>")[0] for part in text.split("<h3>")[1:3])
    for table, rules in ((full, ["masked"] * 3 + ["kept"] * 3), (sampled, ["both"] * 3)):
        assert re.findall("<td>(masked|kept|both)</td>", table) == rules
    assert "toy: order artefact" in text and "5 of 600 users" in text and "the order of the file" in text
    assert text.count("data:image/png;base64,") == 4
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)]*)""", text)
    assert all(address.startswith("data:") for address in loaded), "the page must load nothing from elsewhere"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "deciles-toy-full.png",
        "deciles-toy-sampled.png",
        "groups-toy.png",
        "training.png",
    ]


def test_best_is_bold_with_its_relative_difference(tmp_path, material):
    row = {"dataset": "d", "seed": 1, "protocol": "full", "group": "overall", "metric": "ndcg@10", "count": 9}
    row |= {"history": "kept", "weights": "kept"}
    rows = [{**row, "recipe": "a", "value": 0.3}, {**row, "recipe": "b", "value": 0.2}]
    text = write_report(tmp_path, rows, title="t", focus="a", base="b", metric_names=("ndcg@10",)).read_text()
    assert "<b>0.3000</b><br><small>+50.0%</small>" in text and "<b>0.2000" not in text
    assert "order artefact" not in text


def test_unknown_recipe_is_an_error(tmp_path, material):
    with pytest.raises(InputError, match="expected metrics of recipe 'gru4rec', found llm_cfsr"):
        write_report(tmp_path, material[0], title="t", focus="llm_cfsr", base="gru4rec")


def test_missing_matplotlib_names_the_extra(tmp_path, material, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"llmcfsr-merlin\[report\]"):
        figures.training_figure(tmp_path / "x.png", {"a": [{"epoch": 1, "loss": 1.0}]})


def test_the_first_screen_says_better_only_if_the_paired_test_does(material):
    metrics, comparisons = material
    rows = [row for row in metrics if row["recipe"] != "llm_cfsr-no_match"]
    how = {"focus": "llm_cfsr", "others": ["sasrec", "popularity"], "metric": "ndcg@10", "served": "masked"}
    found = headline(rows, {"sasrec": comparisons}, **how)
    assert found.verdict == "Better" and found.seeds == 2 and found.lines[0].other == "sasrec"
    assert [line.group for line in found.lines][:3] == ["overall", "tail_item", "head_item"]
    assert found.lines[0].test["difference"] > 0 and found.lines[2].test is None
    assert headline(rows, {}, **how).verdict == "Better, untested"
    close = [row | {"p_holm": 0.3} for row in comparisons]
    assert headline(rows, {"sasrec": close}, **how).verdict == "Not told apart"
    turned = how | {"focus": "sasrec", "others": ["llm_cfsr"]}
    mirrored = [row | {"difference": -row["difference"]} for row in comparisons]
    assert headline(rows, {"llm_cfsr": mirrored}, **turned).verdict == "Worse"
    assert headline(rows, {}, **how | {"others": []}) is None
