"""prepare.split=temporal against ten lines of pandas: through files, in memory, for every partitioning and rule."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import COUNT, ITEM, ROW, SEQUENCES, SPLITS, SUBSECOND, TIED, TIME, TRAIN_COUNT, USER
from llmcfsr_merlin.dataset.prepare.nvtabular_adapter import read_schema
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.evaluation.cases import read_cases, write_cases
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.errors import InputError
from tests.property.test_prepare import (  # noqa: F401
    SINGLE,
    SMALL,
    cluster,
    content,
    in_memory,
    logs,
    marks,
    read,
    write_log,
)
from tests.property.test_prepare import reference as filtered

START = 1_000_000_000  # 2001: a log of positions is refused


def reference(log: pd.DataFrame, config: PrepareConfig) -> dict[str, list]:
    """Rows (user, raw items) of each split, those of sequences with their segments, and the cut."""
    valid, test = (
        int(log[TIME].quantile(share, interpolation="lower")) for share in (config.valid_quantile, config.test_quantile)
    )
    if config.filter_by == "log":
        users, items, *_ = filtered(log, config)
        kept = log[log[USER].isin(list(users)) & log[ITEM].isin(items)]
    else:
        kept = filtered_by_train(log.dropna(subset=[USER, ITEM]), config, valid)
    kept = kept.sort_values([name for name in (USER, TIME, SUBSECOND, ROW) if name in kept])
    kept = kept.assign(segment=(kept[TIME] >= valid).astype(int) + (kept[TIME] >= test))
    rows: dict[str, list] = {name: [] for name in (SEQUENCES, *SPLITS)}
    for user, history in kept.groupby(USER):
        items, segments = history[ITEM].tolist(), history["segment"].tolist()
        rows[SEQUENCES].append((user, items, segments))
        rows["train"] += [(user, items[: segments.count(0)])] if segments.count(0) > 1 else []
        for number in (1, 2):
            asked = [place for place, segment in enumerate(segments) if segment == number and segments[0] < number]
            asked = {"last": asked[-1:], "first": asked[:1], "all": asked}[config.targets]
            rows[SPLITS[number]] += [(user, items[: place + 1]) for place in asked]
    same = marks(kept)
    rows |= {f"{SEQUENCES} {TIED}": [same[user] for user, *_ in rows[SEQUENCES]]}
    rows |= {f"train {TIED}": [same[user][: len(items)] for user, items in rows["train"]]}
    return rows | {"cut": [log[TIME].min(), valid, test]}


def filtered_by_train(log: pd.DataFrame, config: PrepareConfig, valid: int) -> pd.DataFrame:
    """The ten lines: of those who have interactions before validation, the ones that the filter leaves there."""
    known = left = log[log[TIME] < valid]
    enough = {USER: set(known[USER]), ITEM: set(known[ITEM])}
    while config.filter != "none":
        of = known if config.filter == "one_pass" else left
        sizes = {name: of[name].value_counts() for name in (USER, ITEM)}
        least = {USER: config.min_user, ITEM: config.min_item}
        enough = {name: set(size[size >= least[name]].index) for name, size in sizes.items()}
        before, left = left, left[left[USER].isin(enough[USER]) & left[ITEM].isin(enough[ITEM])]
        if config.filter == "one_pass" or len(left) == len(before):
            break
    stays = [log[name].isin(enough[name]) | ~log[name].isin(known[name]) for name in (USER, ITEM)]
    return log[stays[0] & stays[1]]


def check(log: pd.DataFrame, config: PrepareConfig, tmp: Path, parts: int, rows: int, memory: bool = False) -> dict:
    source, expected = write_log(tmp / "in", log, parts), reference(log, config)
    low, valid, test = expected["cut"]
    with in_memory(300) if memory else nullcontext():
        device = 1 << 40 if memory else 0
        on = Engine("single", False, 1, 1 << 30, rows * 160, device_memory=device)
        whole = len({item for _, items, _ in expected[SEQUENCES] for item in items}) > 1
        if not (low < valid < test and whole and all(expected[split] for split in SPLITS)):
            with pytest.raises(InputError):
                prepare(source, tmp / "out", config, on)
            return {}
        report = prepare(source, tmp / "out", config, on)
    out, long = tmp / "out", config.max_length + 1
    vocabulary = pd.read_parquet(out / "vocabulary.parquet")
    code = dict(zip(vocabulary[ITEM], vocabulary["code"]))
    for split in SPLITS:
        found = read(out, split)
        assert list(zip(found[USER], found[ITEM].map(list))) == [
            (user, [code[item] for item in items][-long:]) for user, items in expected[split]
        ]
    sequences = read(out, SEQUENCES)
    assert sequences[ITEM].map(list).tolist() == [[code[i] for i in items] for _, items, _ in expected[SEQUENCES]]
    segments = [marks for *_, marks in expected[SEQUENCES]]
    assert sequences[TIED].map(list).tolist() == expected[f"{SEQUENCES} {TIED}"]
    train = [[False, *same[-long:][1:]] for same in expected[f"train {TIED}"]]
    assert read(out, "train")[TIED].map(list).tolist() == train
    assert sequences["train_items"].tolist() == [marks.count(0) for marks in segments]
    assert sequences["valid_items"].tolist() == [len(marks) - marks.count(2) for marks in segments]
    seen = [item for _, items, marks in expected[SEQUENCES] for item, mark in zip(items, marks) if mark == 0]
    counts = pd.Series(seen).value_counts()
    assert vocabulary[TRAIN_COUNT].tolist() == [counts.get(item, 0) for item in vocabulary[ITEM]]
    assert vocabulary[COUNT].sum() == report["interactions"] == sum(map(len, segments))
    split = report["split"]
    assert split["train"] == {"interactions": len(seen), "users": sum(0 in marks for marks in segments)}
    for number in (1, 2):
        assert split[SPLITS[number]] == {
            "interactions": sum(marks.count(number) for marks in segments),
            "users": sum(number in marks for marks in segments),
            "rows": len(expected[SPLITS[number]]),
            "cold_users": sum(marks[0] == number for marks in segments),
            "cold_targets": sum(items[-1] not in counts for _, items in expected[SPLITS[number]]),
        }
    for held_out in (0, 1, 2):
        parts_of = [
            [i for i, mark in zip(items, marks) if mark <= 2 - held_out] for _, items, marks in expected[SEQUENCES]
        ]
        found = [sequence.tolist() for block in Dataset(out).sequences(held_out) for sequence in block]
        assert found == [[code[item] for item in items] for items in parts_of if items]
    for name in ("valid", "test"):
        write_cases(out, tmp / f"{name}.parquet", len(code) + 3, negatives=3, split=name)
        cases = [case for case in read_cases(tmp / f"{name}.parquet", 1000, 10**6)]
        asked = [(user, [code[item] for item in items]) for user, items in expected[name]]
        assert [user for batch in cases for user in batch.users] == [user for user, _ in asked]
        assert [target for batch in cases for target in batch.targets] == [items[-1] for _, items in asked]
        assert [row[row > 0].tolist() for batch in cases for row in batch.histories] == [i[:-1] for _, i in asked]
    return report


configs = st.builds(
    PrepareConfig, split=st.just("temporal"), filter=st.sampled_from(["k_core", "one_pass", "none"]),
    min_user=st.integers(1, 3), min_item=st.integers(1, 3), max_length=st.integers(1, 6),
    valid_quantile=st.sampled_from([0.2, 0.5, 0.8]), test_quantile=st.sampled_from([0.81, 0.9]),
    targets=st.sampled_from(["last", "first", "all"]), filter_by=st.sampled_from(["train", "log"]),
)  # fmt: skip


def timed(log: pd.DataFrame) -> pd.DataFrame:
    return log.assign(**{TIME: log[TIME] + START})


@SMALL
@given(
    log=logs().map(timed), config=configs, parts=st.sampled_from([1, 3, 50]), rows=st.sampled_from([1, 7, 10**6]),
)  # fmt: skip
def test_equals_reference(tmp_path_factory, log, config, parts, rows):
    check(log, config, tmp_path_factory.mktemp("temporal"), parts, rows)


@SMALL
@given(
    log=logs().map(timed), config=configs, parts=st.sampled_from([1, 3, 50]), rows=st.sampled_from([1, 7, 10**6]),
)  # fmt: skip
def test_in_memory_writes_the_same_bytes(tmp_path_factory, log, config, parts, rows):
    tmp = tmp_path_factory.mktemp("memory")
    if report := check(log, config, tmp / "a", parts, rows, memory=True):
        files = prepare(tmp / "a" / "in", tmp / "b", config, Engine("single", False, 1, 1 << 30, rows * 160))
        assert content(tmp / "a" / "out") == content(tmp / "b")
        assert report["split"] == files["split"]


def skewed(rows: int = 900) -> pd.DataFrame:
    """40 users who come one after the other, 15 equal times at each cut; nobody before, after or across all of it."""
    random = np.random.default_rng(0)
    times = np.sort(random.integers(0, 100_000, rows))
    times[715:730], times[800:815] = times[719], times[809]
    place = np.arange(rows)
    return pd.DataFrame({
        USER: [f"u{x}" for x in np.maximum(place * 40 // rows - random.integers(0, 4, rows), 0)],
        ITEM: [f"i{x}" for x in place * 30 // rows + random.integers(0, 4, rows)],
        TIME: times + START, ROW: random.permutation(rows),
    })  # fmt: skip


@pytest.mark.parametrize("targets", ["last", "first", "all"])
@pytest.mark.parametrize("memory", [False, True])
def test_ties_at_the_cut_and_users_on_one_side(tmp_path, targets, memory):
    config = PrepareConfig(split="temporal", filter="none", max_length=5, targets=targets)
    report = check(skewed(), config, tmp_path, 7, 60, memory)
    cut = report["split"]
    assert report["min_sequence"] == 0 and cut["train"]["interactions"] == 715 and cut["valid"]["interactions"] == 85
    assert cut["valid"]["cold_users"] > 0 and cut["test"]["cold_users"] > 0 and cut["test"]["cold_targets"] > 0
    segments = [(h.train, h.valid, list(map(len, h.sequences))) for h in read_histories(tmp_path / "out" / SEQUENCES)]
    train, _, length = (np.concatenate(part) for part in zip(*segments))
    assert (train == 0).any() and (train == length).any() and ((train > 0) & (train < length)).any()


def test_local_cluster_writes_the_same_bytes(cluster, tmp_path):  # noqa: F811
    """Cuts and counts travel to the workers and back."""
    config = PrepareConfig(split="temporal", min_user=2, min_item=2, max_length=5, targets="all")
    report = check(skewed(), config, tmp_path / "a", 7, 60)
    cluster.partition = 60 * 160
    found = prepare(tmp_path / "a" / "in", tmp_path / "b", config, cluster)
    assert found["split"] == report["split"] and content(tmp_path / "a" / "out") == content(tmp_path / "b")


@pytest.mark.parametrize("memory", [False, True])
def test_an_item_that_lost_all_its_training_users_falls_with_its_later_interactions(tmp_path, memory):
    """a and b are in training, c too, but with a user who has too few there; d is new after the cut."""
    rows = [("u1", "a"), ("u1", "b"), ("u2", "c"), *(("u1", item) for item in "acbdacbd"), ("u3", "d"), ("u3", "c")]
    log = pd.DataFrame(rows, columns=[USER, ITEM])
    log = log.assign(**{TIME: START + 1000 * np.arange(len(log)), ROW: np.arange(len(log))})
    config = PrepareConfig(
        split="temporal", min_user=2, min_item=1, max_length=9, valid_quantile=0.25, test_quantile=0.6, targets="all"
    )
    check(log, config, tmp_path, 1, 7, memory)
    vocabulary = pd.read_parquet(tmp_path / "out" / "vocabulary.parquet")
    assert sorted(vocabulary[ITEM]) == ["a", "b", "d"]


DAYS = 1_577_836_800 + 86_400 * np.arange(10)  # from 2020-01-01


def train_rows(tmp: Path, log: pd.DataFrame, config: PrepareConfig) -> tuple[dict[str, list[str]], dict]:
    """Raw items of each user's row of train, and the report."""
    report = prepare(write_log(tmp / "in", log.assign(row=range(len(log))), 2), tmp / "out", config, SINGLE)
    raw = pd.read_parquet(tmp / "out" / "vocabulary.parquet").set_index("code")[ITEM]
    rows = read(tmp / "out", "train")
    return {user: raw[list(codes)].tolist() for user, codes in zip(rows[USER], rows[ITEM])}, report


@pytest.mark.parametrize("rule", ["k_core", "one_pass", "none"])
def test_the_filters_know_nothing_of_the_future(tmp_path, rule):
    """Two logs that differ after the cut: one of the past alone would keep what either keeps of it."""
    random = np.random.default_rng(0)
    log = pd.DataFrame({
        USER: [f"u{x}" for x in random.zipf(1.4, 600) % 60], ITEM: [f"i{x}" for x in random.zipf(1.4, 600) % 50],
        TIME: random.choice(DAYS, 600) + np.arange(600),
    })  # fmt: skip
    late = log[TIME] >= DAYS[6]
    other = log.assign(**{ITEM: np.where(late, "j" + log[ITEM].str[1:], log[ITEM])})[~late | (random.random(600) < 0.5)]
    config = PrepareConfig(split="temporal", filter=rule, valid_from="2020-01-07", test_from="2020-01-09")
    (rows, report), (found, _) = (train_rows(tmp_path / name, of, config) for name, of in (("a", log), ("b", other)))
    assert rows == found and len(rows) > 5
    dropped = [entry["items"] + entry["users"] for entry in report["filter"]]
    assert (sum(dropped) > 0) == (rule != "none") and report["min_sequence"] == 0
    assert report["rows_in"] - sum(dropped) == report["interactions"]
    config = config.model_copy(update={"filter_by": "log"})
    assert train_rows(tmp_path / "c", log, config)[0] != train_rows(tmp_path / "d", other, config)[0] or rule == "none"


def test_who_stays_when_the_filters_count_the_training_part(tmp_path):
    """a and b have x and y twice before the cut. z is rare there, so that its later events fall too; n is new, and
    stays, though it comes once. c is new as well; d came once before and is gone with all that follows."""
    past = [("a", "x", 0), ("a", "y", 1), ("b", "x", 1), ("b", "y", 2), ("a", "z", 2), ("d", "x", 3)]
    late = [("a", "z", 6), ("a", "n", 7), ("b", "x", 6), ("b", "n", 8), ("c", "y", 6), ("c", "x", 8), ("d", "y", 7)]
    log = pd.DataFrame(past + late, columns=[USER, ITEM, TIME])
    log[TIME] = DAYS[log[TIME]]
    config = PrepareConfig(
        split="temporal", min_user=2, min_item=2, valid_from="2020-01-06", test_from="2020-01-08", targets="all"
    )
    rows, report = train_rows(tmp_path, log, config)
    assert rows == {"a": ["x", "y"], "b": ["x", "y"]}
    raw = pd.read_parquet(tmp_path / "out" / "vocabulary.parquet").set_index("code")[ITEM]
    sequences = {row[USER]: "".join(raw[list(row[ITEM])]) for _, row in read(tmp_path / "out", SEQUENCES).iterrows()}
    assert sequences == {"a": "xyn", "b": "xyxn", "c": "yx"}
    assert report["filter"][0] == {"round": 1, "items": 2, "users": 2}
    assert report["split"]["test"] == {
        "interactions": 3, "users": 3, "rows": 3, "cold_users": 0, "cold_targets": 2
    }  # fmt: skip


def test_dates_are_days_in_utc(tmp_path):
    """2020-01-05T00:00:00Z itself is test; a user who begins after the cut has no row; targets are the last ones."""
    day = 86400
    rows = [("a", "xyzxy", [1, 2, 3, 4, 5]), ("b", "yxzy", [1, 2, 2.9999, 4.9999]), ("c", "xyz", [5.5, 6, 7])]
    log = pd.DataFrame([
        {USER: user, ITEM: item, TIME: int(1_577_836_800 + (at - 1) * day)}
        for user, items, times in rows for item, at in zip(items, times)
    ])  # fmt: skip
    config = PrepareConfig(split="temporal", filter="none", valid_from="2020-01-03", test_from="2020-01-05")
    report = prepare(write_log(tmp_path / "in", log.assign(row=range(len(log))), 2), tmp_path / "out", config, SINGLE)
    assert report["split"] == {
        "valid_from": "2020-01-03T00:00:00Z", "test_from": "2020-01-05T00:00:00Z", "targets": "last",
        "train": {"interactions": 5, "users": 2},
        "valid": {"interactions": 3, "users": 2, "rows": 2, "cold_users": 0, "cold_targets": 0},
        "test": {"interactions": 4, "users": 2, "rows": 1, "cold_users": 1, "cold_targets": 0}, "filter_by": "train",
    }  # fmt: skip
    schema = read_schema(tmp_path / "out" / "schema.pbtxt")
    assert schema[ITEM].int_domain.max == 5 and schema[ITEM].value_count.max == 51
    for split in SPLITS:
        names = pq.read_schema(next((tmp_path / "out" / split).iterdir())).names
        assert names == schema.column_names + ([TIED] if split == "train" else [])
    vocabulary = pd.read_parquet(tmp_path / "out" / "vocabulary.parquet").set_index("code")[ITEM]
    found = {
        split: [
            (row[USER], "".join(vocabulary[list(row[ITEM])])) for _, row in read(tmp_path / "out", split).iterrows()
        ]
        for split in SPLITS
    }
    assert found == {
        "train": [("a", "xy"), ("b", "yxz")], "valid": [("a", "xyzx"), ("b", "yxzy")], "test": [("a", "xyzxy")]
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"valid_from": "2001-01-01"}, "expected interactions before validation, in it and in test"),
        ({"test_from": "2030-01-01"}, "found a log from 2001-09-09T01:4.* to 2001-09-1"),
        ({"filter": "k_core", "min_user": 200}, "left none of"),
    ],
)
def test_a_cut_that_leaves_nothing_is_one_line(tmp_path, settings, message):
    config = PrepareConfig(**{"split": "temporal", "filter": "none"} | settings)
    source = write_log(tmp_path / "in", skewed(), 1)
    with pytest.raises(InputError, match=message):
        prepare(source, tmp_path / "out", config, SINGLE)


def test_nobody_on_both_sides_is_one_line(tmp_path):
    log = pd.DataFrame({USER: list("aaabbbccc"), ITEM: list("xyzxyzxyz"), TIME: START + np.arange(9), ROW: range(9)})
    config = PrepareConfig(split="temporal", filter="none", valid_quantile=0.4, test_quantile=0.75)
    with pytest.raises(InputError, match="before and in valid, found none of 1 with one in it"):
        prepare(write_log(tmp_path / "in", log, 1), tmp_path / "out", config, SINGLE)


def test_positions_are_no_times(tmp_path):
    log = skewed().assign(**{TIME: np.arange(900)})
    with pytest.raises(InputError, match="found positions or dates before 1990"):
        prepare(write_log(tmp_path / "in", log, 1), tmp_path / "out", PrepareConfig(split="temporal"), SINGLE)
