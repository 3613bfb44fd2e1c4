"""From a DataFrame to recommendations in five lines, with every model that ships; and formats of one's own."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin import Config, Dataset, InputError, Recommender
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.dataset import ingest_stage
from tests.worlds import attribute_world

QUICK = {"train.epochs": 1, "train.device": "cpu"}
OF_STAGES = ("llmemb", "said", "tslrec")  # read another trained model, or a language model that is not everywhere


@pytest.fixture(scope="module")
def frames():
    sequences, items = attribute_world(users=120, items=60)
    start = pd.Timestamp("2024-01-01")
    log = [(u, i, start + pd.Timedelta(hours=t)) for u, row in sequences.items() for t, i in enumerate(row)]
    return pd.DataFrame(log, columns=["user_id", "item_id", "timestamp"]), pd.DataFrame(
        [{"item_id": item, **attributes} for item, attributes in items.items()]
    )


@pytest.fixture(scope="module")
def dataset(frames):
    return Dataset.from_frames(*frames)


@pytest.mark.parametrize("model", [name for name in presets() if name not in OF_STAGES])
def test_every_model_is_fitted_and_recommends(model, dataset, tmp_path):
    # Settings after the model: a preset's own epochs would win over those of the dataset.
    fitted = Recommender.fit(dataset, config=dataset.config.with_model(model).with_settings(QUICK))
    found = fitted.recommend([["i0001", "i0005"], ["i0002"]], k=3)
    assert found.groupby("history").size().tolist() == [3, 3] and np.isfinite(found["score"]).all()
    fitted.save(tmp_path / "model")
    pd.testing.assert_frame_equal(
        Recommender.load(tmp_path / "model").recommend([["i0001", "i0005"], ["i0002"]], k=3), found
    )
    with pytest.raises(InputError, match="expected no folder"):
        fitted.save(tmp_path / "model")


def test_frames_are_read_as_files_are(frames, dataset, tmp_path):
    """The same sequences and splits as the command line makes of a CSV."""
    frames[0].to_csv(tmp_path / "log.csv", index=False)
    config = Config().with_settings({"data.interactions": [str(tmp_path / "log.csv")]})
    from llmcfsr_merlin.dataset import prepare_stage

    ingest_stage.run(config, tmp_path / "run")
    prepare_stage.run(config, tmp_path / "run")
    for name in ("sequences", "train", "test", "vocabulary.parquet"):
        made, expected = (pq.read_table(folder / "prepare" / name) for folder in (dataset.run, tmp_path / "run"))
        assert made.equals(expected), name


def test_a_run_is_loaded_and_shared_by_models(frames, tmp_path):
    made = Dataset.from_frames(*frames, run=tmp_path / "run")
    loaded = Dataset.load(tmp_path / "run")
    assert loaded.shape == made.shape and loaded.files("train") == made.files("train")
    popular, near = (Recommender.fit(loaded, name).recommend([["i0001"]], k=5) for name in ("popularity", "item_knn"))
    assert popular["item_id"].tolist() != near["item_id"].tolist()


def test_what_is_missing_is_said(frames, tmp_path):
    ids_only = Dataset.from_frames(frames[0])
    with pytest.raises(InputError, match=r"train\.align_to needs another trained model"):
        Recommender.fit(ids_only, "llmemb")
    with pytest.raises(InputError, match="expected a run directory"):
        Dataset.load(tmp_path)
    with pytest.raises(InputError, match=r"user_id.*found user, item_id, timestamp"):
        Dataset.from_frames(frames[0].rename(columns={"user_id": "user"}))
    with pytest.raises(ValueError, match="test items of this dataset are hidden"):
        next(ids_only.without_test().sequences(0))
    with pytest.raises(ValueError, match="expected a split out of train, valid"):
        ids_only.without_test().files("test")


def test_a_format_of_ones_own(tmp_path):
    rows = [{"card": f"u{n % 4}", "article": f"a{n % 7}", "at": 1_600_000_000 + n} for n in range(40)]
    (tmp_path / "till.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "articles.jsonl").write_text(json.dumps({"article": "a1", "label": "Comb", "shelf": "3"}))
    settings = {"data.format": "tests.toys:till_receipts", "data.interactions": [str(tmp_path / "till.jsonl")]}
    config = Config().with_settings(settings | {"data.items": [str(tmp_path / "articles.jsonl")]})
    counts = ingest_stage.run(config, tmp_path / "run").counts
    assert (counts["interactions"], counts["users"], counts["items"]) == (40, 4, 7)
    items = pq.read_table(tmp_path / "run" / "ingest" / "items").to_pylist()
    assert {"item_id": "a1", "title": "Comb", "shelf": "3"} in items
    with pytest.raises(InputError, match=r"data\.format: expected table, amazon"):
        Config().with_settings({"data.format": "tills"})
