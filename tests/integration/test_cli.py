"""The command line as a user meets it: the demo end to end, every verb, one clear line and a code for bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmcfsr_merlin import Client, Config, Recommender
from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.dataset import examples
from llmcfsr_merlin.runtime.layout import STAGES
from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.serving.server import Server, find_tritonserver

SMALL = [
    "data.synthetic_users=250", "data.synthetic_items=120", "train.epochs=2", "model.scorers.network.hidden=16",
    "prepare.max_length=12", "evaluate.sampled_negatives=20", "embed.max_tokens=24",
]  # fmt: skip
SET = [argument for setting in SMALL for argument in ("--set", setting)]


def llmcfsr(*arguments, code=0) -> subprocess.CompletedProcess:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "llmcfsr_merlin.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "small"
    done = llmcfsr("run", "demo", "--run", directory, *SET)
    line = json.loads(done.stdout.splitlines()[-1])
    assert list(line["stages"]) == list(STAGES)
    assert set(line["metrics"]) == {"llm_cfsr", "sasrec", "popularity"}
    assert "hr@10 (full: full ranking over the catalogue)" in done.stdout and "masked" in done.stdout
    assert set(line["metrics"]["sasrec"]["full"]) == {"masked", "kept"}
    return directory


@pytest.fixture
def call(capsys):
    """The command in this process, which has imported everything already; returns its standard output.

    said: what it shall have said meanwhile, on standard error.
    """

    def run_verb(*arguments, said: Sequence[str] = ()) -> str:
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        shown = capsys.readouterr()
        assert code == 0, shown.out + shown.err
        assert all(line in shown.err for line in said), shown.err
        return shown.out

    return run_verb


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_search_ends_with_a_model_file(run, call, tmp_path):
    pytest.importorskip("optuna")
    space = tmp_path / "space.yaml"
    space.write_text("model.dropout: [0.5]\n")
    options = ["--run", run, "--model", "sasrec", *SET, "--set", "train.epochs=1", "--space", space, "--trials", 1]
    shown = call("search", "demo", *options)
    assert "settings by validation NDCG@10" in shown and json.loads(last_line(shown))["trials"] == 1
    assert Config.load("demo", [], run / "search" / "best.yaml").model.name == "sasrec"


def test_a_second_run_skips_every_stage(run, call):
    said = [f"{stage}: nothing changed, skipped" for stage in STAGES]
    call("run", "demo", "--run", run, *SET, said=said)


def test_quiet_leaves_the_answer_and_verbose_says_where_a_line_comes_from(run, capsys):
    assert main(["run", "demo", "--run", str(run), *SET, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and json.loads(last_line(shown.out))["run"] == str(run)
    assert main(["ingest", "demo", "--run", str(run), *SET, "-v"]) == 0
    assert " llmcfsr_merlin.pipeline: ingest: nothing changed, skipped\n" in capsys.readouterr().err


def test_the_demo_ends_with_served_recommendations_by_title(run):
    if find_tritonserver() is None:
        pytest.skip("no tritonserver here")
    done = llmcfsr("demo", "--run", run, *SET)
    assert done.stdout.count("user U0") == 3
    assert " ml" in done.stdout  # titles end with a size
    users = len(examples.sequences(run))
    assert f"served = offline for {users} of {users} users" in done.stdout


def test_serve_recommend_and_check_served(run, call):
    if find_tritonserver() is None:
        pytest.skip("no tritonserver here")
    user, sequence = next(iter(examples.pick(run, 1).items()))
    with Server(run / "export" / "model_repo") as server:
        for url in (server.grpc_url, server.http_url):
            shown = call("recommend", "--url", url, "--run", run, "--user", user, "-k", 3, "--exclude-seen", "--json")
            offline = call("recommend", "--run", run, "--user", user, "-k", 3, "--exclude-seen", "--json")
            assert [row["item_id"] for row in json.loads(shown)["items"]] == [
                row["item_id"] for row in json.loads(offline)["items"]
            ]
        report = json.loads(last_line(call("check-served", run, "--url", server.grpc_url)))
        assert report["different"] == 0
        assert report["histories"] == len(examples.sequences(run))
        with Client(server.grpc_url) as client:
            served = client.recommend([sequence], k=4)
        assert served["item_id"].tolist() == Recommender.load(run).recommend([sequence], k=4)["item_id"].tolist()


def test_new_items_are_encoded_and_can_be_recommended(run, call, tmp_path):
    new = tmp_path / "new.jsonl"
    title = "Aurora Gel Cleanser with Mint, 50 ml"
    new.write_text(
        json.dumps({"item_id": "NEW1", "title": title, "brand": "Aurora", "categories": ["Cleanser"]}) + "\n"
    )
    shown = call("items", "add", run, new, "--out", tmp_path / "grown")
    assert "1 items added" in shown
    history = next(iter(examples.pick(run, 1).values()))
    before, after = (Recommender.load(folder).recommend([history], k=500) for folder in (run, tmp_path / "grown"))
    old = after[after["item_id"] != "NEW1"]
    assert len(old) == len(after) - 1 == len(before)
    assert dict(zip(old["item_id"], old["score"])) == pytest.approx(
        dict(zip(before["item_id"], before["score"])), abs=1e-5
    )
    assert load_model(tmp_path / "grown" / "train").vectors.lexical[-1].any(), "its words are known"
    assert (tmp_path / "grown" / "export" / "model_repo").is_dir()


def test_new_items_are_refused_where_embed_was_run_again_after_training(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    llmcfsr("embed", "demo", "--run", tmp_path / "run", *SET, "--set", "embed.lexical=16")
    (tmp_path / "new.jsonl").write_text('{"item_id": "NEW1", "title": "Aurora Gel"}\n')
    done = llmcfsr("items", "add", tmp_path / "run", tmp_path / "new.jsonl", "--out", tmp_path / "grown", code=1)
    assert "vectors that the model was trained on, found others: run `llmcfsr train " in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "grown").exists()


def test_report_is_one_page_with_everything_in_it(run, call):
    pytest.importorskip("matplotlib")
    page = Path(last_line(call("report", run, "--users", 2))).read_text()
    for wanted in ("llm_cfsr", "sasrec", "popularity", "tail_item", "Paired tests", "data:image/png;base64", "ml"):
        assert wanted in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_vectors_prompt_config_and_doctor(run, call, tmp_path):
    item = Recommender.load(run).vocabulary.ids[0]
    assert "prompt: title: " in call("prompt", "demo", item, "--run", run, *SET)
    assert "epochs: 2" in call("config", "demo", *SET)
    if pytest.importorskip("matplotlib") and pytest.importorskip("sklearn"):
        judged = call("vectors", "report", run, "--out", tmp_path / "v")
        assert "same brand among the 10 nearest" in judged
        assert (tmp_path / "v" / "map.png").is_file()
    call("doctor")


def test_evaluate_against_another_run(run, call, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for stage in ("ingest", "prepare", "embed"):
        (other / stage).symlink_to(run / stage)
    alone = ["--set", "evaluate.baselines=[]"]
    call("run", "demo", "--model", "sasrec", "--run", other, *SET, *alone, said=["embed: not needed"])
    shown = call("evaluate", "demo", "--run", run, "--against", other, *SET)
    assert "llm_cfsr against sasrec" in shown


BAD = {
    "unknown verb": (["fly"], 2, "invalid choice"),
    "unknown recipe": (["run", "nothing"], 1, "expected a recipe file or one of .*demo.*found 'nothing'"),
    "unknown key": (["run", "demo", "--set", "train.epoch=1"], 1, "unknown key train.epoch .did you mean epochs"),
    "unknown model": (["run", "demo", "--model", "nothing"], 1, "expected a model file or one of .*sasrec"),
    "missing files": (
        ["ingest", "demo", "--set", "data.format=amazon", "--set", "data.interactions=[x]"],
        1,
        "found no 'x'",
    ),
    "stage too early": (["train", "demo"], 1, "run `llmcfsr prepare .* first"),
    "not a run": (["report", "nowhere"], 1, "expected a finished stage in nowhere"),
    "nothing to serve": (["serve", "nowhere"], 1, "model_repo"),
    "no server": (["recommend", "--url", "grpc://127.0.0.1:9", "A"], 1, "127.0.0.1:9"),
    "bad url": (["recommend", "--url", "localhost", "A"], 1, "expected a url like grpc://"),
    "no history": (["recommend", "--run", "nowhere"], 1, "expected either item ids or --user"),
    "no source": (["recommend", "A"], 1, "expected --run DIRECTORY or --url SERVER"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_one_line_and_a_code(name, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    arguments, code, message = BAD[name]
    try:
        found = main(arguments)
    except SystemExit as stopped:  # argparse
        found = stopped.code
    shown = capsys.readouterr().err
    assert found == code
    assert re.search(message, last_line(shown)), shown
    assert "Traceback" not in shown
    if code == 1:
        assert last_line(shown).startswith("error: ")
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "config.json"]
    assert not left, "nothing half-written"


def test_a_bug_is_named_and_traced_only_on_demand(monkeypatch, capsys):
    monkeypatch.setattr(Config, "load", lambda *_: 1 / 0)
    assert main(["config", "demo"]) == 3
    shown = capsys.readouterr().err
    assert "unexpected ZeroDivisionError" in shown
    assert "Traceback" not in shown
    assert main(["config", "demo", "--traceback"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_recommend_reads_the_settings_that_the_run_was_made_with(run):
    assert Config.recorded(run).model.network.hidden == 16
