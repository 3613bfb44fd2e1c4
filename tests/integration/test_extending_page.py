"""The page on extensions: its files form a package and a recipe that run."""

import json
import re
from pathlib import Path

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.recommender import Recommender

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r"^```(?:python|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Every block of the page as the file that its first line names, and a log for them."""
    for text in BLOCK.findall(PAGE.read_text()):
        name = text.partition("\n")[0].removeprefix("# ")
        assert re.fullmatch(r"[\w/]+\.(py|yaml)", name), f"a block without the name of its file: {name!r}"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    visits = [(user, step) for user in range(80) for step in range(8)]
    rows = [{"card": f"u{user}", "article": f"a{(user + step) % 30}", "at": 1.6e9 + step} for user, step in visits]
    (tmp_path / "till.jsonl").write_text("\n".join(map(json.dumps, rows)))
    articles = [{"article": f"a{i}", "label": f"comb {i}", "shelf": str(i % 3)} for i in range(30)]
    (tmp_path / "articles.jsonl").write_text("\n".join(map(json.dumps, articles)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_recipe_of_the_page_trains_and_recommends(shop):
    config = Config.load("shop.yaml", ["train.device=cpu", "evaluate.baselines=[popularity]"])
    run_stages(config, "run", ("ingest", "prepare", "train", "evaluate", "export"))
    allow = ["shop.next_door:NextDoor", "shop.blocks:RunningMean"]
    recommender = Recommender.load("run", allow=allow)
    assert {"network", "transitions", "next_door"} <= set(recommender.ranker.model.weights)
    assert len(recommender.recommend([["a1", "a2"]], k=5)) == 5
    assert Config.load("shop.yaml", [], "shop/with_transitions.yaml").model.name == "sasrec_with_transitions"
