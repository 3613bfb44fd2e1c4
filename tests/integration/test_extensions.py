"""A scorer, a loss and a backbone from outside the package: trained, calibrated, ranked, explained, exported, grown and
served, with nothing inside changed. A model folder alone imports none of them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from llmcfsr_merlin import Client
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage as prepare
from llmcfsr_merlin.evaluation import evaluate_stage as evaluate
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import VARIABLE
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.serving import export_stage as export
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from llmcfsr_merlin.training import train_stage as train
from tests.worlds import attribute_world, write_ingest

SCORER, LOSS, BLOCK = "tests.toys:NextDoor", "tests.toys:two_negatives", "tests.toys:MeanBlock"
ALLOWED = [SCORER, BLOCK]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = tmp_path_factory.mktemp("models") / "toy.yaml"
    model.write_text(
        f'model: {{name: toy, scorers: {{network: {{hidden: 16, backbone: "{BLOCK}"}}, transitions: {{}}, '
        f'"{SCORER}": {{reach: 3}}}}}}\ntrain: {{loss: "{LOSS}", epochs: 2, batch_size: 64}}\n'
    )
    return Config.load(None, ["name=toy", "evaluate.baselines=[popularity]", "evaluate.sampled_negatives=20"], model)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("toy")
    write_ingest(run, *attribute_world())
    prepare.run(config, run)
    train.run(config, run)
    evaluate.run(config, run)
    export.run(config, run)
    return run


def test_it_is_calibrated_and_ranks_and_explains(run):
    recommender = Recommender.load(run, allow=ALLOWED)
    model = recommender.ranker.model
    assert list(model.weights) == ["network", "transitions", "transitions_borrowed", "co_occurrence", "next_door"]
    assert json.loads((run / "train" / "manifest.json").read_text())["counts"]["weights"] == model.weights
    assert model.scorers[SCORER].settings.reach == 3
    history, items = torch.tensor([[5, 9]]), torch.tensor([[10, 11, 40]])
    shares = model.explain(history, items)
    torch.testing.assert_close(sum(shares.values()), model.scores(history, items))
    graph = torch.jit.trace(model.graph(), (history,), check_trace=False)
    torch.testing.assert_close(graph(history)[:, 3:], model.scores(history)[:, 3:], rtol=1e-4, atol=1e-4)
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert {row["recipe"] for row in metrics} == {"toy", "popularity"}


def test_it_grows(run):
    model = Recommender.load(run, allow=ALLOWED).ranker.model
    scorer = model.scorers[SCORER]
    before = scorer(torch.tensor([[5, 9]]))
    scorer.append_items(NewItems(2))
    after = scorer(torch.tensor([[5, 9]]))
    assert after.shape[2] == before.shape[2] + 2
    torch.testing.assert_close(after[:, :, : before.shape[2]], before)


def test_a_folder_alone_imports_nothing(run):
    """In a process of its own, where nobody has imported the module before."""
    code = (
        "import sys, llmcfsr_merlin as m\n"
        f"try: m.Recommender.load({str(run)!r})\n"
        "except m.InputError as error: print(error)\n"
        "assert 'tests.toys' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "is not part of this package" in done.stdout and VARIABLE in done.stdout
    with pytest.raises(InputError, match="MeanBlock"):
        Recommender.load(run, allow=[SCORER])


@pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver on this machine")
def test_it_is_served(run, monkeypatch):
    monkeypatch.setenv(VARIABLE, ",".join(ALLOWED))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    histories = [["i0001", "i0005"], ["i0100"], ["i0007", "i0003", "i0011"]]
    with Server(run / "export" / "model_repo") as server, Client(server.grpc_url) as client:
        answers = client.answer(histories, 5)
        parity = check_served(run, server.grpc_url, histories)
    wanted = Recommender.load(run, allow=ALLOWED).answer(histories, 5)
    assert answers.items.tolist() == wanted.items.tolist()
    np.testing.assert_allclose(answers.scores, wanted.scores, rtol=1e-5)
    assert parity.passed
