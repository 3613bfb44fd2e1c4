"""The real raw files give what their collectors counted, and row for row what stands joined beside them."""

import gzip
import io
import json

import pandas as pd
import pytest

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.names import ITEM, TITLE, USER
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean
from llmcfsr_merlin.runtime.engine import Engine
from tests.unit.dataset.world import run

RAW = {
    # folder: (settings, users, items, rows)
    "raw_amazon2018_gift_cards": ({"interactions": "Gift_Cards_5.json.gz", "items": "meta_*.json.gz"}, 458, 148, 2972),
    "raw_amazon2018_fashion": ({"interactions": "AMAZON_FASHION_5.json.gz"}, 406, 31, 3176),
    "raw_amazon2018_all_beauty": ({"interactions": "All_Beauty_5.json.gz"}, 991, 85, 5269),
    "raw_amazon2014_digital_music_truncated": (
        {"interactions": "reviews*", "items": "meta*", "damaged": "keep"}, 2490, 382, 6908,
    ),
}  # fmt: skip


def joined(folder) -> pd.DataFrame:
    """The ready-made interactions; their collectors sorted them by user and time."""
    with gzip.open(folder / "interactions.csv.gz") as stream:
        return pd.read_csv(io.BytesIO(stream.read()), dtype={USER: str, ITEM: str})


@pytest.mark.parametrize("name", RAW)
def test_raw_amazon(name, data_dir, tmp_path):
    settings, users, items, rows = RAW[name]
    paths = {key: value if key == "damaged" else str(data_dir / name / value) for key, value in settings.items()}
    counts, log, found = run(tmp_path, format="amazon", **paths)
    assert (counts["users"], counts["items"], counts["interactions"]) == (users, items, rows)
    assert (log[USER].nunique(), log[ITEM].nunique(), len(log)) == (users, items, rows)
    order = ["user_id", "item_id", "timestamp", "rating"]
    expected = joined(data_dir / name)[order].sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(log[order].sort_values(order, ignore_index=True), expected, check_dtype=False)
    assert sorted(found[ITEM]) == sorted(log[ITEM].unique())
    if name == "raw_amazon2018_all_beauty":
        assert counts["duplicates_kept"] == 1108, "as the collectors counted"


@pytest.mark.parametrize("name", ["raw_amazon2018_gift_cards", "raw_amazon2014_digital_music_truncated"])
def test_titles_are_those_of_the_metadata(name, data_dir, tmp_path):
    settings = RAW[name][0]
    paths = {key: value if key == "damaged" else str(data_dir / name / value) for key, value in settings.items()}
    _, _, found = run(tmp_path, format="amazon", **paths)
    with gzip.open(data_dir / name / "items.jsonl.gz", "rt") as stream:
        expected = {row["item_id"]: clean(row["title"], 300) or None for row in map(json.loads, stream)}
    titles = dict(zip(found[ITEM], found[TITLE]))
    assert {item: titles[item] for item in expected} == expected


def test_a_truncated_file_is_an_error_that_counts_its_rows(data_dir, tmp_path):
    folder = data_dir / "raw_amazon2014_digital_music_truncated"
    with pytest.raises(ValueError, match=r"damaged gzip .*: 6,908 rows before the damage are whole and one is cut"):
        run(tmp_path, format="amazon", interactions=str(folder / "reviews*"))


def test_raw_yelp_samples(data_dir, tmp_path):
    """Of all years; the joined file holds the reviews whose business is in a sample, each once."""
    folder = data_dir / "raw_yelp_samples"
    counts, log, items = run(
        tmp_path, format="yelp", interactions=str(folder / "*review*"), items=str(folder / "*business*"),
    )  # fmt: skip
    assert counts["bad_lines"] == 1, "the last line of one sample is cut"
    expected = joined(folder)
    moments = pd.to_datetime(expected["timestamp"], utc=True).dt.tz_localize(None).to_numpy()
    expected["timestamp"] = moments.astype("datetime64[s]").astype("int64")  # pandas 3 chooses the unit itself
    known = items.loc[items[TITLE].notna(), ITEM]
    found = log[log[ITEM].isin(known)].drop_duplicates(["user_id", "item_id", "timestamp"])
    order = ["user_id", "item_id", "timestamp", "rating"]
    pd.testing.assert_frame_equal(
        found[order].sort_values(order, ignore_index=True),
        expected[order].sort_values(order, ignore_index=True),
        check_dtype=False,
    )


@pytest.mark.parametrize("name, users, items, rows", [
    ("amazon_beauty", 22_363, 12_101, 198_502), ("yelp", 30_431, 20_033, 316_354),
])  # fmt: skip
def test_joined_form(name, users, items, rows, data_dir, tmp_path):
    folder = data_dir / name
    counts, log, found = run(
        tmp_path, interactions=str(folder / "interactions.csv.gz"), items=str(folder / "items.jsonl.gz")
    )
    assert (counts["users"], counts["items"], counts["interactions"]) == (users, items, rows)
    assert counts["items_without_metadata"] == 0 and len(found) == items
    pd.testing.assert_frame_equal(
        log[["user_id", "item_id", "timestamp"]].rename(columns={"timestamp": "order"}), joined(folder),
        check_dtype=False,
    )  # fmt: skip


@pytest.mark.parametrize("targets", ["last", "first", "all"])
def test_movielens_split_in_time(data_dir, tmp_path, targets):
    """The default quantiles, against pandas on the file as it is."""
    path = data_dir / "ml_100k" / "interactions.csv.gz"
    if not path.is_file():
        pytest.skip(f"no ml_100k in {data_dir}")
    run(tmp_path, interactions=str(path))
    config = PrepareConfig(split="temporal", filter="none", targets=targets)
    single = Engine("single", False, 2, 1 << 30, 20_000 * 160)
    report = prepare(tmp_path / "interactions", tmp_path / "out", config, single)["split"]
    log = pd.read_csv(path, dtype={"user_id": str, "item_id": str})
    valid, test = (log["timestamp"].quantile(share, interpolation="lower") for share in (0.8, 0.9))
    train, later = log[log["timestamp"] < valid], log[log["timestamp"] >= test]
    known = later[later["user_id"].isin(log.loc[log["timestamp"] < test, "user_id"])]
    assert report["train"] == {"interactions": len(train), "users": train["user_id"].nunique()}
    found = report["test"]
    assert found["interactions"] == len(later) and found["users"] == later["user_id"].nunique()
    assert found["cold_users"] == found["users"] - known["user_id"].nunique() > 0
    assert found["rows"] == (len(known) if targets == "all" else known["user_id"].nunique())
    if targets == "all":
        assert found["cold_targets"] == (~known["item_id"].isin(train["item_id"])).sum() > 0


@pytest.mark.parametrize("name, users, items, rows", [
    ("paper_yelp", 15_720, 11_383, 192_214), ("paper_fashion", 9_094, 4_722, 34_759),
])  # fmt: skip
def test_paper_files(name, users, items, rows, data_dir, tmp_path):
    path = str(data_dir / name / "inter.txt.gz")
    counts, *_ = run(tmp_path, interactions=path, columns={"names": ["user_id", "item_id"], "time": None})
    assert (counts["users"], counts["items"], counts["interactions"]) == (users, items, rows)
