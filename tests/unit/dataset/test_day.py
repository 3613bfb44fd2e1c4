"""The split of an update: everything known is trained on but what some of the day's users did on the day."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import CODE, DAY, ITEM, RECENT, ROW, TIED, TIME, USER, VOCABULARY
from llmcfsr_merlin.dataset.prepare.day import Day, last_seen, retired_items, write_last_seen
from llmcfsr_merlin.dataset.prepare.extend import extend
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.day_logs import day, write

SETTINGS = PrepareConfig(filter="none", max_length=6)


@pytest.fixture(scope="module")
def engine():
    return Engine("single", False, 1, 1 << 30, 100 * 160)


@pytest.fixture(scope="module")
def days(tmp_path_factory, engine):
    """Three days, in several parts; the first in leave-one-out, the others as updates. Returns the folder and logs."""
    folder = tmp_path_factory.mktemp("days")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcfsr_merlin.dataset.prepare.partitions._SMALL", 1)
        logs = [day(0, 60, 40), day(1, 80, 60, 300), day(2, 90, 30, 300)]
        prepare(write(folder / "log0", logs[0]), folder / "0", SETTINGS, engine)
        for number in (1, 2):
            log = write(folder / f"log{number}", logs[number])
            of = Day(0.5, f"seed {number}", 1, ("i999", "i1") if number == 2 else ())
            extend(folder / f"{number - 1}", log, folder / f"{number}", SETTINGS, engine, of)
    return folder, logs


def raw(folder, name):
    vocabulary, found = Dataset(folder).vocabulary, {}
    for path in sorted((folder / name).glob("*.parquet")):
        table = pq.read_table(path)
        for user, codes in zip(table[USER].to_pylist(), table[ITEM].to_pylist()):
            found.setdefault(user, []).append(vocabulary.decode(np.array(codes)).tolist())
    return found


def test_nothing_is_lost_and_ids_stay(days):
    folder, logs = days
    whole = pd.concat(logs).sort_values([TIME, ROW], kind="stable").groupby(USER)[ITEM].apply(list).to_dict()
    short = {user for user, part in logs[0].groupby(USER) if len(part) < 3}  # dropped by the first day's leave-one-out
    found = {user: rows[0] for user, rows in raw(folder / "2", "sequences").items()}
    assert found.keys() == whole.keys() and len(list((folder / "2" / "sequences").iterdir())) > 2
    assert all(found[user] == whole[user] for user in whole if user not in short)
    old, new = (pq.read_table(folder / name / VOCABULARY).to_pandas().set_index(ITEM)[CODE] for name in ("0", "2"))
    assert new.head(len(old)).equals(old) and "i999" in new.index and len(new) > len(old) + 1


def test_ties_stand_beside_the_items(days):
    """Those of three days, also in rows that were written again and again; the first of a row is tied with nothing."""
    folder, logs = days
    whole = pd.concat(logs).sort_values([USER, TIME, ROW], kind="stable")
    same = whole[TIME].eq(whole[TIME].shift()) & whole[USER].eq(whole[USER].shift())
    ties = {user: part.tolist() for user, part in same.groupby(whole[USER])}
    short = {user for user, part in logs[0].groupby(USER) if len(part) < 3}
    found = pq.read_table(folder / "2" / "sequences").to_pylist()
    assert all(row[TIED] == ties[row[USER]] for row in found if row[USER] not in short) and any(map(any, ties.values()))
    for row in pq.read_table(folder / "2" / "train").to_pylist():
        assert len(row[TIED]) == len(row[ITEM]) and not row[TIED][0]


def test_the_day_of_some_users_is_held_out(days):
    folder, logs = days
    before = {user: len(rows[0]) for user, rows in raw(folder / "1", "sequences").items()}
    whole = {user: rows[0] for user, rows in raw(folder / "2", "sequences").items()}
    splits = {name: raw(folder / "2", name) for name in ("train", "valid", "test")}
    held = {name: set(splits[name]) for name in ("valid", "test")}
    active = set(logs[2][USER])
    assert held["valid"] and held["test"] and not held["valid"] & held["test"] and held["valid"] | held["test"] < active
    for user, rows in splits["train"].items():
        known = whole[user][: before.get(user, 1)] if user in held["valid"] | held["test"] else whole[user]
        assert rows == [known[-(SETTINGS.max_length + 1) :]]
    for name in ("valid", "test"):
        for user, rows in splits[name].items():
            assert [row[-1] for row in rows] == whole[user][max(before.get(user, 0), 1) :]
    recent = raw(folder / "2", RECENT)
    assert set(recent) == {user for user in active - held["valid"] - held["test"] if len(whole[user]) > 1}
    assert all(rows == splits["train"][user] for user, rows in recent.items())
    first = raw(folder / "1", "valid").keys() | raw(folder / "1", "test").keys()
    assert first != held["valid"] | held["test"], "other users each day"


def test_what_yesterdays_model_is_asked(days):
    folder, logs = days
    before = {user: len(rows[0]) for user, rows in raw(folder / "1", "sequences").items()}
    vocabulary = Dataset(folder / "2" / DAY).vocabulary
    asked = [
        (str(block.users[user]), vocabulary.decode(block.sequences[user][: target + 1]).tolist())
        for block in read_histories(folder / "2" / DAY / "sequences")
        for user, target in block.cases("test")
    ]
    whole = {user: rows[0] for user, rows in raw(folder / "2", "sequences").items()}
    expected = [
        (user, sequence[: target + 1])
        for user, sequence in whole.items() if user in set(logs[2][USER])
        for target in range(max(before.get(user, 0), 1), len(sequence))
    ]  # fmt: skip
    assert sorted(asked) == sorted(expected)
    assert vocabulary.ids.tolist() == Dataset(folder / "2").vocabulary.ids.tolist()
    assert vocabulary.counts[-1] == 0 and vocabulary.counts.sum() == Dataset(folder / "1").vocabulary.counts.sum()


def test_a_day_that_is_too_thin_is_refused(days, tmp_path, engine):
    folder, _ = days
    log = write(tmp_path / "log", pd.DataFrame({USER: ["u000"], ITEM: ["i1"], TIME: 900_000, ROW: [5]}))
    with pytest.raises(InputError, match=r"found 1 users.*raise update\.held_out"):
        extend(folder / "1", log, tmp_path / "new", SETTINGS, engine, Day(0.5, "seed"))


def test_items_that_left(days, tmp_path):
    folder, logs = days
    seen = last_seen(folder / "0", folder / "log0")
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        write_last_seen(seen, folder / f"log{number}", tmp_path / str(number))
        seen = last_seen(tmp_path / str(number), folder / "none")
    last = pd.concat(logs).groupby(ITEM)[TIME].max()
    assert dict(zip(seen[ITEM].to_pylist(), seen[TIME].to_pylist())) == last.to_dict()
    ids = [*last.index, "new"]
    old = [place + 3 for place, item in enumerate(last.index) if last[item] < last.max() - 86_400]
    assert old and retired_items(ids, seen, days=1).tolist() == old
    assert retired_items(ids, seen, catalogue=[ids[2], "new"]).tolist() == [3, 4, *range(6, len(ids) + 2)]
    assert not len(retired_items(ids, seen))
