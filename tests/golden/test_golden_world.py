"""A world small enough to check by hand: eleven raw lines to the exact codes, sequences, splits and answers."""

import json

import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin import Config, Recommender
from llmcfsr_merlin.dataset.names import CODE, COUNT, ITEM, SEQUENCES, TRAIN_COUNT, USER, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.pipeline import run_stages

DAY = 86400
# user, item, day. bob bought two things on day 3: the order of the file counts. cem and dee bought too little.
LOG = [
    ("bob", "soap", 2), ("ana", "soap", 1), ("ana", "comb", 2), ("ana", "wax", 3), ("ana", "balm", 4),
    ("bob", "comb", 3), ("bob", "wax", 3), ("bob", "balm", 9), ("cem", "soap", 5), ("ana", "soap", 8),
    ("dee", "rare", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    lines = [
        json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": day * DAY, "overall": 5.0})
        for user, item, day in LOG
    ]
    (folder / "log.json").write_text("\n".join(lines))
    config = Config.load(
        None,
        ["name=golden", "data.format=amazon", f"data.interactions=[{folder / 'log.json'}]", "prepare.min_user=3",
         "prepare.min_item=2", "model.scorers.network.hidden=8", "model.scorers.network.heads=1", "train.epochs=1",
         "evaluate.baselines=[popularity]",
         "evaluate.protocols=[full]"],
        "sasrec",
    )  # fmt: skip
    run_stages(config, folder / "run")
    return folder / "run"


def table(path):
    return pq.read_table(path).to_pydict()


def test_codes_start_at_three_by_frequency_then_by_name(run):
    """cem, dee and `rare` fall out of the core; soap 3 (ana twice), the others 2, ties by raw id."""
    found = table(run / "prepare" / VOCABULARY)
    assert dict(zip(found[ITEM], found[CODE])) == {"soap": 3, "balm": 4, "comb": 5, "wax": 6}
    assert dict(zip(found[ITEM], found[COUNT])) == {"soap": 3, "balm": 2, "comb": 2, "wax": 2}
    # Training is all but the last two of each: ana soap comb wax, bob soap comb.
    assert dict(zip(found[ITEM], found[TRAIN_COUNT])) == {"soap": 2, "balm": 0, "comb": 2, "wax": 1}


def test_sequences_are_in_time_order_and_ties_in_file_order(run):
    found = table(run / "prepare" / SEQUENCES)
    assert dict(zip(found[USER], found[ITEM])) == {"ana": [3, 5, 6, 4, 3], "bob": [3, 5, 6, 4]}


def test_splits_leave_one_out(run):
    rows = {split: table(run / "prepare" / split) for split in ("train", "valid", "test")}
    found = {split: dict(zip(row[USER], row[ITEM])) for split, row in rows.items()}
    assert found == {
        "train": {"ana": [3, 5, 6], "bob": [3, 5]},
        "valid": {"ana": [3, 5, 6, 4], "bob": [3, 5, 6]},
        "test": {"ana": [3, 5, 6, 4, 3], "bob": [3, 5, 6, 4]},
    }


def test_popularity_metrics_by_hand(run):
    """Training counts rank soap = comb (2) above wax (1) above balm (0): ana's soap is 1st or 2nd, bob's balm 4th."""
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    found = {
        row["metric"]: row["value"] for row in metrics if (row["recipe"], row["group"]) == ("popularity", "overall")
    }
    assert found["hr@10"] == 1.0
    assert found["mrr"] in (pytest.approx((1 + 1 / 4) / 2), pytest.approx((1 / 2 + 1 / 4) / 2))
    assert Vocabulary.load(run / "prepare" / VOCABULARY).train_counts[3:].tolist() == [2, 0, 2, 1]


def test_answers_are_raw_ids_and_unknown_ones_are_counted(run):
    recommender = Recommender.load(run)
    answers = recommender.answer([["soap", "comb"], ["nothing", "soap"], ["nothing"]], k=9, exclude_seen=True)
    assert sorted(item for item in answers.items[0] if item) == ["balm", "wax"]
    assert answers.unknown.tolist() == [0, 1, 1]
    assert answers.fallback.tolist() == [False, False, True]
    assert answers.items[2].tolist() == ["soap", "balm", "comb", "wax"]  # the most popular, ties by code


def test_many_histories_are_answered_in_pieces_as_one_by_one(run, monkeypatch):
    histories = [["soap"], ["comb", "wax"], [], ["balm", "soap"], ["x"]]
    recommender = Recommender.load(run)
    whole = recommender.answer(histories, k=3)
    monkeypatch.setattr("llmcfsr_merlin.recommender._ROWS", 2)
    pieces = recommender.answer(histories, k=3)
    assert pieces.items.tolist() == whole.items.tolist()
    assert pieces.scores == pytest.approx(whole.scores, abs=1e-6)
    assert pieces.unknown.tolist() == whole.unknown.tolist() == [0, 0, 0, 0, 1]
    assert pieces.fallback.tolist() == whole.fallback.tolist()
