"""A model is given away as a folder, and read from there and from a Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmcfsr_merlin import Config, InputError, Recommender, run_stages
from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.runtime.layout import CARD
from tests.hub import COMMIT, hub

ASK = """
import json, sys
from llmcfsr_merlin import InputError, Recommender
for revision in sys.argv[3:]:
    try:
        model = Recommender.load(sys.argv[1], revision=None if revision == "-" else revision)
        print(json.dumps(model.answer([json.loads(sys.argv[2])], 5).items.tolist()))
    except InputError as error:
        print(f"error: {error}")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a model in closed form, evaluated."""
    run = tmp_path_factory.mktemp("share") / "run"
    settings = ["data.synthetic_users=200", "data.synthetic_items=60", "evaluate.baselines=[]"]
    run_stages(Config.load("demo", settings, "item_knn"), run, ("ingest", "prepare", "train", "evaluate"))
    return run


@pytest.fixture(scope="module")
def shared(run):
    folder = run.parent / "shared"
    assert main(["share", str(run), "--out", str(folder)]) == 0
    return folder


def test_the_folder_holds_safetensors_json_and_a_card_with_figures(run, shared):
    names = {path.name for path in shared.iterdir()}
    assert names == {
        CARD, "manifest.json", "model.json", "model.safetensors", "titles.parquet", "vocabulary.parquet"
    }  # fmt: skip
    card = (shared / CARD).read_text()
    assert "| item_knn | kept |" in card and "| users | " in card and "library_name: llmcfsr-merlin" in card
    said = "".join(path.read_text() for path in shared.iterdir() if path.suffix in (".json", ".md"))
    assert str(run.parent) not in said, "a path of this machine"
    with pytest.raises(InputError, match="expected no folder"):
        from llmcfsr_merlin.serving.sharing import share

        share(run, shared)


def test_an_edited_card_is_given_away_as_it_is(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "train" / CARD).write_text("# Ours\n")
    assert main(["share", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / CARD).read_text() == "# Ours\n"


def test_what_was_given_away_recommends_the_same_and_keeps_its_card(run, shared, tmp_path):
    history = [Recommender.load(run).vocabulary.ids[:2].tolist()]
    moved = tmp_path / "elsewhere"
    shutil.copytree(shared, moved)
    loaded = Recommender.load(str(moved))
    assert loaded.answer(history, 5).items.tolist() == Recommender.load(run).answer(history, 5).items.tolist()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / CARD).read_text() == (shared / CARD).read_text()
    (moved / "model.json").write_text((moved / "model.json").read_text().replace("item_knn", "item_knm"))
    with pytest.raises(InputError, match="was changed after it was written"):
        Recommender.load(moved)


def test_a_model_is_read_by_its_name_on_the_hub(run, shared, tmp_path):
    """huggingface_hub itself against a server on loopback: what the model needs is fetched, once."""
    published = tmp_path / "published"
    shutil.copytree(shared, published)
    (published / "pytorch_model.bin").write_bytes(b"a pickle")
    (published / "train").mkdir()
    (published / "train" / "model.json").write_text("{}")
    history = Recommender.load(run).vocabulary.ids[:2].tolist()
    expected = Recommender.load(run).answer([history], 5).items.tolist()
    fetched: list[str] = []
    with hub("shop/model", published, fetched) as endpoint:
        asked = ("-", "v1", "other", COMMIT, COMMIT)
        lines = _ask(tmp_path, endpoint, "shop/model", history, asked)
    assert [json.loads(line) for line in (*lines[:2], *lines[3:])] == [expected] * 4
    assert lines[2].startswith("error: ") and "at revision 'other'" in lines[2]
    names = {CARD, "manifest.json", "model.json", "model.safetensors", "vocabulary.parquet"}
    assert set(fetched) == names, "neither pickles nor files of others are fetched"
    hidden = _ask(tmp_path, endpoint, "shop/model", history, (COMMIT,))
    assert json.loads(hidden[0]) == expected, "a commit that was fetched needs no Hub"
    (tmp_path / "shop").mkdir()
    lines = _ask(tmp_path, endpoint, "shop/model", history, ("-",))
    assert "found no manifest.json" in lines[0], "a path into a folder that is here is no name"
    shutil.copytree(shared, tmp_path / "shop" / "model")
    lines = _ask(tmp_path, endpoint, "shop/model", history, ("-", "v1"))
    assert json.loads(lines[0]) == expected and "revision is for a model of the Hugging Face Hub" in lines[1]


def _ask(folder: Path, endpoint: str, name: str, history: list[str], revisions: tuple[str, ...]) -> list[str]:
    """Lines of a process of its own: huggingface_hub reads its endpoint and cache when it is imported."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "PYTHONPATH": root}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", ASK, name, json.dumps(history), *revisions]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_fitted_model_is_saved_with_its_card(run, tmp_path):
    from llmcfsr_merlin import Dataset

    Recommender.fit(Dataset.load(run), "item_knn").save(tmp_path / "model")
    card = (tmp_path / "model" / CARD).read_text()
    assert "# item_knn\n" in card and "| users | " in card and "have not been ranked" in card
