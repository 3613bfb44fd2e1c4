"""Around a server: integer ids, new items, mixed bundles, the export stage, serve(), request logs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.dataset.names import MODEL_REPOSITORY
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving import export_stage as export_stage
from llmcfsr_merlin.serving.new_items import add_items
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.repository import export, publish, versions
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from llmcfsr_merlin.serving.steps import Decode, Encode, Rank
from tests.served import DIMENSION, IDS, served_bundle, write_model

triton = pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton")
HISTORY = {"HISTORY": np.array([[b"B001", b"B002"]], dtype=object)}


def new_items(attributes: list[dict]) -> np.ndarray:
    return torch.randn(len(attributes), DIMENSION, generator=torch.Generator().manual_seed(1)).numpy()


def new_words(attributes: list[dict]) -> np.ndarray:
    return torch.randn(len(attributes), 8, generator=torch.Generator().manual_seed(2)).numpy()


@pytest.mark.parametrize("lexical", [None, 8])
def test_new_items_leave_the_scores_of_old_ones(tmp_path, lexical):
    trained = write_model(tmp_path / "train", lexical=lexical)
    rows = [{"item_id": f"N{i}", "title": str(i)} for i in range(10)]
    counts = add_items(trained, tmp_path / "grown", rows, new_items, new_words if lexical else None)
    assert counts == {"items_before": 60, "items_added": 10, "items": 70}
    old, grown = Recommender.load(trained), Recommender.load(tmp_path / "grown")
    for before, after in (
        (old.answer([["B001", "B050"], ["zzz"], []], 60), grown.answer([["B001", "B050"], ["zzz"], []], 60, allow=IDS)),
        (old.answer([IDS[:30]], 60, exclude_seen=True), grown.answer([IDS[:30]], 60, exclude_seen=True, allow=IDS)),
    ):
        assert (before.items == after.items).all()
        np.testing.assert_allclose(before.scores, after.scores, atol=1e-6)
    # The semantic view alone ranks a new item: one like a history's item stands near it.
    answers = grown.answer([["B001"]], 70)
    assert set(answers.items[0]) == {*IDS, *(f"N{i}" for i in range(10))}
    assert len(set(answers.scores[0, np.isin(answers.items[0], [f"N{i}" for i in range(10)])])) == 10
    assert grown.answer([["N3", "B002"]], 5).unknown.tolist() == [0]


@pytest.mark.parametrize(
    "rows, message",
    [([], "at least one new item"), ([{"title": "x"}], "item_id"), ([{"item_id": "B001"}], "already has"),
     ([{"item_id": "N"}, {"item_id": "N"}], "repeated")],
    ids=str,
)  # fmt: skip
def test_new_items_that_are_none_are_refused(tmp_path, rows, message):
    trained = write_model(tmp_path / "train")
    with pytest.raises(InputError, match=message):
        add_items(trained, tmp_path / "grown", rows, new_items)
    assert not (tmp_path / "grown").exists()


def test_new_vectors_of_another_shape_or_with_nan_are_refused(tmp_path):
    trained, row = write_model(tmp_path / "train"), [{"item_id": "N"}]
    for vectors in (np.zeros((1, 3)), np.full((1, DIMENSION), np.nan)):
        with pytest.raises(InputError, match="vectors"):
            add_items(trained, tmp_path / "grown", row, lambda _, vectors=vectors: vectors)
    for views in (("collaborative",), ("null_space",)):
        model = write_model(tmp_path / views[0], views=views, content_match=False)
        with pytest.raises(InputError, match="needs retraining"):
            add_items(model, tmp_path / "grown", row, new_items)


def test_new_items_need_lexical_vectors_where_the_model_has_them(tmp_path):
    trained, row = write_model(tmp_path / "train", lexical=8), [{"item_id": "N"}]
    for encode_words in (None, lambda _: None, lambda _: np.zeros((1, 9)), lambda _: np.full((1, 8), np.inf)):
        with pytest.raises(InputError, match="vectors"):
            add_items(trained, tmp_path / "grown", row, new_items, encode_words)
        assert not (tmp_path / "grown").exists()
    add_items(trained, tmp_path / "grown", row, new_items, new_words)


def test_steps_of_two_bundles_refuse_each_other(tmp_path):
    first, second = write_model(tmp_path / "a", seed=0), write_model(tmp_path / "b", seed=1)
    limits = Limits()
    (encoded,) = Encode(first, limits)([HISTORY])
    (refused,) = Rank(second, limits)([encoded])
    assert isinstance(refused, InputError) and "rank serves another bundle" in str(refused)
    (ranked,) = Rank(first, limits)([encoded])
    (refused,) = Decode(second, limits)([{**ranked, "K": encoded["K"]}])
    assert isinstance(refused, InputError) and "decode serves another bundle" in str(refused)
    # One refused request does not take its neighbours with it.
    (other,) = Encode(second, limits)([HISTORY])
    answers = Rank(first, limits)([encoded, other, encoded])
    assert [isinstance(answer, InputError) for answer in answers] == [False, True, False]


def test_the_export_stage_runs_once_and_again_after_a_change(tmp_path):
    run = tmp_path / "run"
    write_model(run / "train")
    config = Config()
    manifest = export_stage.run(config, run)
    assert manifest.counts["layout"] == "ensemble" and (run / "export" / MODEL_REPOSITORY / "rank/1/model.py").is_file()
    assert "model_repo/rank/1/bundle/model.safetensors" in manifest.files
    written = (run / "export/manifest.json").stat().st_mtime_ns
    export_stage.run(config, run)
    assert (run / "export/manifest.json").stat().st_mtime_ns == written
    export_stage.run(Config.load(None, ["serve.layout=merged"]), run)
    assert not (run / "export" / MODEL_REPOSITORY / "rank").exists()
    offline = Recommender.load(served_bundle(run / "export" / MODEL_REPOSITORY)).recommend([["B001"]], k=5)
    assert offline.equals(Recommender.load(run).recommend([["B001"]], k=5))


@pytest.mark.parametrize("layout", ["ensemble", "merged"])
def test_every_published_version_leaves_a_complete_repository(tmp_path, layout):
    serve, trained = ServeConfig(layout=layout), write_model(tmp_path / "train")
    export(trained, tmp_path / "repo", serve)
    front = tmp_path / "repo" / "recommend"
    for version in (2, 3, 4):
        assert publish(trained, tmp_path / "repo", serve) == version
        assert versions(tmp_path / "repo") == [version - 1, version]
        assert any(path.name.isdecimal() for path in front.iterdir())
        if layout == "ensemble":
            assert (front / "config.pbtxt").read_text().count(f"model_version: {version}") == 3


@triton
def test_integer_ids(tmp_path):
    """A log of integer ids: the client takes integers, the wire carries decimal strings, an INT64 tensor is refused."""
    trained = write_model(tmp_path / "train", ids=[str(7 * i + 10) for i in range(40)])
    export(trained, tmp_path / "repo", ServeConfig(layout="merged"))
    with Server(tmp_path / "repo", threads=1) as server, Client(server.grpc_url) as client:
        texts = client.answer([["10", "17", "3"]], 5, deny=["24"])
        for history in ([10, 17, 3], np.array([10, 17, 3]), [np.int32(10), "17", 3]):
            numbers = client.answer([history], 5, deny=[24])
            assert (numbers.items == texts.items).all() and numbers.unknown.tolist() == [1]
        assert client.answer([["010", "10 ", 10.0]]).unknown.tolist() == [1]  # leading zeros are part of an id
        assert check_served(trained, server.http_url, [[10, 17], [3], []], 5).passed
        body = {"inputs": [{"name": "HISTORY", "datatype": "INT64", "shape": [1, 2], "data": [10, 17]}]}
        request = urllib.request.Request(f"{server.http_url}/v2/models/recommend/infer", data=json.dumps(body).encode())
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 400 and "HISTORY" in refused.value.read().decode()


@triton
@pytest.mark.parametrize("layout", ["ensemble", "merged"])
def test_a_served_shortlist_answers_as_the_library_with_one_and_says_what_is_proven(tmp_path, layout):
    """Five of 400 random items at most prove nothing for some histories: the setting is seen to reach the server."""
    ids = [f"B{i:03d}" for i in range(400)]
    trained = write_model(tmp_path / "train", ids, dimension=192)
    export(trained, tmp_path / "repo", ServeConfig(layout=layout, shortlist=5))
    histories = [[ids[i], ids[(7 * i + 3) % 400]] for i in range(40)] + [["zzz"], []]
    with Server(tmp_path / "repo", threads=1) as server:
        assert check_served(trained, server.grpc_url, histories, 4, shortlist=5).passed
        with Client(server.grpc_url) as client:
            served = client.answer(histories, 4)
            filtered = client.answer(histories, 4, exclude_seen=True, deny=ids[:200])
            every = client.answer(histories, 12)
        library = Recommender.load(trained, shortlist=5)
        assert (served.exact == library.answer(histories, 4).exact).all() and not served.exact.all()
        assert served.exact[-2:].all(), "the most popular items are certain"
        assert (filtered.exact == library.answer(histories, 4, exclude_seen=True, deny=ids[:200]).exact).all()
        assert (filtered.items != None).all()  # noqa: E711 - elementwise
        assert every.exact.all(), "more than the shortlist: every item is scored"
        full = Recommender.load(trained).answer(histories, 4)
        close = np.isclose(full.scores, served.scores, atol=1e-4).all(1)
        assert close[served.exact].all()
        text = urllib.request.urlopen(server.metrics_url, timeout=30).read().decode()
        counted = sum(float(line.split()[-1]) for line in text.splitlines()
                      if line.startswith("llmcfsr_uncertain_answers{"))  # fmt: skip
        assert counted == 2 * (~served.exact).sum() + (~filtered.exact).sum()


@triton
@pytest.mark.parametrize("logged", [False, True])
def test_request_log_is_off_by_default(tmp_path, logged):
    export(write_model(tmp_path / "train"), tmp_path / "repo", ServeConfig(layout="merged"))
    with Server(tmp_path / "repo", threads=1, log_requests=logged) as server, Client(server.http_url) as client:
        for _ in range(3):
            client.answer([["B001"], ["zzz"]], 5)
        with pytest.raises(InputError, match="TOP_K"):
            client.answer([["B001"]], 10_000)
        time.sleep(0.5)
        lines = [line for line in server.log.splitlines() if "recommend requests=" in line]
    assert len(lines) == (4 if logged else 0)
    if logged:
        assert "rows=[2]" in lines[0] and "TOP_K" in lines[3] and "B001" not in "".join(lines)


@triton
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_serve_in_the_foreground_until_a_signal(tmp_path, ending):
    export(write_model(tmp_path / "train"), tmp_path / "repo", ServeConfig(layout="merged"))
    code = "import sys; from llmcfsr_merlin.serving.supervise import serve; sys.exit(serve(sys.argv[1], threads=1))"
    # A shell starts its background jobs deaf to SIGINT, and tests may be one.
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "repo")], stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        http, grpc = process.stdout.readline().split()[1:3]
        with Client(grpc) as client:
            assert client.answer([["B001"]], 3).items.shape == (1, 3)
        process.send_signal(ending)
        assert process.wait(40) == 0
    finally:
        process.kill()
    with pytest.raises(InputError, match="no server answers"):
        Client(http).answer([["B001"]])


@triton
@pytest.mark.triton
def test_requests_that_meet_a_busy_merged_step_are_answered_together(tmp_path):
    """And each as it would be alone: bad ones, and those that ask for less, change nothing for the others."""
    trained = write_model(tmp_path / "train")
    export(trained, tmp_path / "repo", ServeConfig(layout="merged", max_batch_size=8, max_top_k=50))
    offline = Recommender.load(trained)
    histories = [IDS[place : place + 1 + place % 5] for place in range(0, 36)]
    wanted = offline.answer(histories, 4).items.tolist()

    def ask(url: str, number: int) -> list:
        with Client(url) as client:
            found = []
            for turn in range(6):
                place = (number * 5 + turn) % len(histories)
                if (number + turn) % 4 == 0:
                    with pytest.raises(InputError, match="TOP_K: expected 1 to 50"):
                        client.answer([histories[place]], 51)
                found.append(client.answer([histories[place]], 4).items[0].tolist() == wanted[place])
            return found

    with Server(tmp_path / "repo", threads=1, log_requests=True) as server, ThreadPoolExecutor(16) as pool:
        urls = [server.grpc_url, server.http_url] * 8
        answers = [right for found in pool.map(ask, urls, range(16)) for right in found]
        together = [int(count) for count in re.findall(r"recommend requests=(\d+)", server.log)]
        with Client(server.http_url) as client:
            assert client.answer([histories[0]] * 20, 4).items[7].tolist() == wanted[0]
    assert len(answers) == 16 * 6 and all(answers)
    assert 1 < max(together) <= 8
