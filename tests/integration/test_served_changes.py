"""What changes in a served catalogue: retired items that are asked for, and new ones published with a shortlist."""

from pathlib import Path

import numpy as np
import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.new_items import add_items
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.repository import export, publish
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from tests.served import write_model

triton = pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton")
DIMENSION, SHORTLIST, ADDED = 64, 40, 6
IDS = [f"B{i:03d}" for i in range(300)]
GONE = ["B000", "B007", "B021"]  # the most popular item among them
HISTORIES = [["B000", "B007", "B003"], ["B005"], [], ["unknown"], IDS[:90:3]]


def grown(trained: Path, output: Path, seed: int) -> list[str]:
    """Write `trained` with new items like B005 and B097; their ids."""
    near = Recommender.load(trained).ranker.model.vectors.semantic[[8, 100]].numpy()
    noise = np.random.default_rng(seed).standard_normal((ADDED, DIMENSION)).astype(np.float32)
    vectors = np.repeat(near, ADDED // 2, 0) + 0.1 * noise
    rows = [{"item_id": f"N{seed}{number}", "title": "new"} for number in range(ADDED)]
    add_items(trained, output, rows, lambda _: vectors)
    return [row["item_id"] for row in rows]


@pytest.fixture(scope="module", params=[pytest.param("ensemble", marks=pytest.mark.slow), "merged"])
def served(request, tmp_path_factory):
    """A server, its model, which has retired items, and its settings."""
    folder = tmp_path_factory.mktemp(request.param)
    trained = write_model(folder / "train", IDS, dimension=DIMENSION, retired=[IDS.index(item) for item in GONE])
    serve = ServeConfig(layout=request.param, shortlist=SHORTLIST, max_top_k=100)
    export(trained, folder / "repo", serve)
    with Server(folder / "repo", threads=1) as server:
        yield server, trained, serve


@triton
@pytest.mark.triton
@pytest.mark.parametrize("k", [5, 60], ids=["shortlist", "every item"])
def test_a_retired_item_is_not_returned_where_it_is_allowed(served, k):
    server, trained, _ = served
    library = Recommender.load(trained, shortlist=SHORTLIST)
    with Client(server.grpc_url) as client:
        for allowed in (None, [*GONE, "B002", "B009", "B250"], GONE):
            found, wanted = (one.answer(HISTORIES, k, allow=allowed) for one in (client, library))
            assert not set(GONE) & set(found.items.ravel())
            assert found.items.tolist() == wanted.items.tolist() and (found.exact == wanted.exact).all()
            if allowed is not None:
                left = set(allowed) - set(GONE)
                assert [set(row) - {None} for row in found.items] == [left] * len(HISTORIES) and found.exact.all()
        if server.repository.joinpath("explain").is_dir():
            assert client.explain(["B003"], GONE) == library.explain(["B003"], GONE) == [None] * 3


@triton
@pytest.mark.triton
def test_published_new_items_are_served_as_the_library_ranks_them(served, tmp_path):
    """Twice: the second version has the new items of the first."""
    server, trained, serve = served
    for version in (2, 3):
        new = grown(trained, tmp_path / f"grown-{version}", seed=version)
        trained = tmp_path / f"grown-{version}"
        assert publish(trained, server.repository, serve) == version
        server.reload()
        histories = [*HISTORIES, new, ["B005"], ["B097", new[0]]]
        for k in (5, 60):
            assert check_served(trained, server.grpc_url, histories, k, shortlist=SHORTLIST).passed
        library = Recommender.load(trained, shortlist=SHORTLIST)
        with Client(server.grpc_url) as client:
            found = client.answer(histories, 30)
            assert (found.exact == library.answer(histories, 30).exact).all()
            assert all(set(new) & set(found.items[row]) for row in (5, 6, 7)), "new items are found"
            assert found.unknown[5] == 0 and not set(GONE) & set(found.items.ravel())
