"""Retired items are recommended no more, and histories with them score as ever."""

import numpy as np
import pytest
import torch

from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.serving.bundle import Bundle
from llmcfsr_merlin.serving.graph import RankGraph
from llmcfsr_merlin.serving.item_table import ItemTable, write_items
from tests.served import IDS, write_model

GONE = [0, 7, 21]  # the most popular item among them


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, and the same with retired items."""
    whole, retired = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("retired")
    write_model(whole)
    model = load_model(whole)
    model.retire([place + 3 for place in GONE])
    (retired / "vocabulary.parquet").write_bytes((whole / "vocabulary.parquet").read_bytes())
    save_model(model, retired, Recommender.load(whole).vocabulary.hash)
    seal(retired, "train", "other", {})
    return whole, retired


@pytest.mark.parametrize("shortlist", [0, 20])
def test_they_are_recommended_no_more_and_histories_with_them_work(folders, shortlist):
    gone = {IDS[place] for place in GONE}
    histories = [[IDS[0], IDS[7], IDS[3]], [IDS[5]], [], ["unknown"]]
    whole, left = (Recommender.load(folder, shortlist=shortlist).answer(histories, 10) for folder in folders)
    assert not gone & set(left.items.ravel()) and gone & set(whole.items.ravel())
    assert left.unknown.tolist() == [0, 0, 0, 1]
    if not shortlist:
        every = Recommender.load(folders[0]).answer(histories, len(IDS))
        for row, items in enumerate(every.items):
            stay = [(item, score) for item, score in zip(items, every.scores[row]) if item not in gone][:10]
            assert left.items[row].tolist() == [item for item, _ in stay]
            np.testing.assert_allclose(left.scores[row], [score for _, score in stay], rtol=1e-6)


def test_what_serves_without_the_library_knows_them(folders, tmp_path):
    bundle = Bundle.open(folders[1])
    write_items(tmp_path, bundle)
    table, recommender = ItemTable(tmp_path), Recommender.load(folders[1])
    gone = [IDS[place] for place in GONE]
    for allowed in (None, [*gone, IDS[9], IDS[2]], gone):
        wanted = recommender.answer([[]], len(IDS), allow=allowed)
        left = [item for item in wanted.items[0] if item is not None]
        popular = table.popular(len(IDS), (), allowed)
        assert [item for item, _ in popular] == left and not set(gone) & set(left)
        np.testing.assert_allclose([share for _, share in popular], wanted.scores[0][: len(left)], rtol=1e-6)
    assert table.item(table.find(IDS[0]))["interactions"] == len(IDS), "what is retired was bought all the same"
    assert recommender.explain([IDS[3]], [IDS[0], IDS[1]])[0] is None
    graph = RankGraph(recommender, bundle.tag, 10, 4).eval()
    codes = torch.tensor([[3, 10, 6] + [0] * 9, [0] * 12])
    none = torch.tensor([[0], [0]]), torch.tensor([[-1], [-1]]), torch.full((2, 1), bundle.tag)
    with torch.no_grad():
        found, _, _ = graph(codes, *none)
    expected = recommender.answer([[IDS[0], IDS[7], IDS[3]], []], 10)
    assert recommender.vocabulary.decode(found.numpy()).tolist() == expected.items.tolist()


def test_evaluation_and_another_device_keep_them_out(folders):
    model = load_model(folders[1])
    histories = torch.tensor([[3, 4, 0]])
    assert torch.isinf(model.scores(histories)[0, [place + 3 for place in GONE]]).all()
    model.history_weights = {"kept": model.weights, "masked": {**model.weights, "content": 1.0}}
    for scores in model.scores_by_history(histories).values():
        assert torch.isinf(scores[0, [place + 3 for place in GONE]]).all()
    with pytest.raises(ValueError, match="expected retired ids 3 to"):
        model.retire([2])
    model.retire([])
    assert not torch.isinf(model.scores(histories)[0, 3:]).any()
