"""A new day on top of a prepared run equals preparing both days, with the old codes kept."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset import prepare_stage as stage
from llmcfsr_merlin.dataset.names import CODE, COUNT, ITEM, ROW, SPLITS, TIED, TIME, TRAIN_COUNT, USER, VOCABULARY
from llmcfsr_merlin.dataset.prepare.extend import extend
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import seal
from tests.unit.dataset.day_logs import day, write

SETTINGS = PrepareConfig(filter="none", max_length=6)


def raw_rows(out, name):
    vocabulary = Vocabulary.load(out / VOCABULARY)
    table = pq.read_table(out / name).to_pandas()
    return dict(zip(table[USER], table[ITEM].map(lambda codes: vocabulary.decode(codes).tolist())))


def ties(folder) -> dict[str, list[bool]]:
    table = pq.read_table(folder)
    return dict(zip(table[USER].to_pylist(), table[TIED].to_pylist()))


def test_an_old_run_is_extended_without_ties(tmp_path):
    """It does not say which of its own interactions are tied."""
    engine = Engine("single", False, 1, 1 << 30, 1 << 30)
    prepare(write(tmp_path / "1", day(0, 60, 40)), tmp_path / "old", SETTINGS, engine)
    for name in ("sequences", "train"):
        for path in (tmp_path / "old" / name).iterdir():
            pq.write_table(pq.read_table(path).drop([TIED]), path)
    extend(tmp_path / "old", write(tmp_path / "2", day(1, 80, 60)), tmp_path / "new", SETTINGS, engine)
    for name in ("sequences", "train"):
        assert pq.read_table(tmp_path / "new" / name).schema.names == [USER, ITEM]


def test_a_split_in_time_is_not_extended(tmp_path):
    engine = Engine("single", False, 1, 1 << 30, 1 << 30)
    log = day(0, 60, 40).assign(**{TIME: 1_500_000_000 + np.arange(600)})
    prepare(write(tmp_path / "1", log), tmp_path / "old", SETTINGS.model_copy(update={"split": "temporal"}), engine)
    with pytest.raises(InputError, match=r"continues a leave-one-out run, found .*old split in time"):
        extend(tmp_path / "old", write(tmp_path / "2", log), tmp_path / "new", SETTINGS, engine)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="extend continues a leave-one-out run, found split=temporal"):
        Config.load(None, ["prepare.split=temporal", f"prepare.extend={tmp_path / 'old'}"])


def test_two_days_equal_one_log(tmp_path, monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.dataset.prepare.partitions._SMALL", 1)
    engine = Engine("single", False, 1, 1 << 30, 200 * 160)
    first, second = day(0, 60, 40), day(1, 80, 60)
    first = first[first.groupby(USER)[USER].transform("size") >= 3]
    second = second[second.groupby(USER)[USER].transform("size") >= 3]
    prepare(write(tmp_path / "1", first), tmp_path / "old", SETTINGS, engine)
    report = extend(tmp_path / "old", write(tmp_path / "2", second), tmp_path / "new", SETTINGS, engine)
    prepare(write(tmp_path / "12", pd.concat([first, second])), tmp_path / "both", SETTINGS, engine)
    for name in ("sequences", *SPLITS):
        assert raw_rows(tmp_path / "new", name) == raw_rows(tmp_path / "both", name)
    for name in ("sequences", "train"):
        found, wanted = (ties(tmp_path / which / name) for which in ("new", "both"))
        assert found == wanted and any(map(any, found.values()))
    old, new, both = (
        pq.read_table(tmp_path / name / VOCABULARY).to_pandas().set_index(ITEM) for name in ("old", "new", "both")
    )
    assert new[CODE].head(len(old)).equals(old[CODE]) and report["new_items"] == len(new) - len(old) > 0
    for column in (COUNT, TRAIN_COUNT):
        assert new[column].sort_index().equals(both[column].sort_index())
    assert report["new_users"] > 0 and report["interactions"] == both[COUNT].sum()


def test_parts_without_a_touched_user_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.dataset.prepare.partitions._SMALL", 1)
    engine = Engine("single", False, 1, 1 << 30, 100 * 160)
    prepare(write(tmp_path / "1", day(0, 60, 40)), tmp_path / "old", SETTINGS, engine)
    one = pd.DataFrame({USER: ["u000", "zzz"], ITEM: ["i1", "i2"], TIME: 5000, ROW: [1, 2]})
    report = extend(tmp_path / "old", write(tmp_path / "2", one), tmp_path / "new", SETTINGS, engine)
    assert report["rewritten_parts"] == 2 and report["dropped_users"] == 1 and report["touched_users"] == 1
    parts = sorted(path.name for path in (tmp_path / "old" / "test").iterdir())
    assert len(parts) > 3 and parts == sorted(path.name for path in (tmp_path / "new" / "test").iterdir())
    same = [
        name
        for name in parts
        if (tmp_path / "old" / "test" / name).read_bytes() == (tmp_path / "new" / "test" / name).read_bytes()
    ]
    assert len(same) >= len(parts) - 2
    assert raw_rows(tmp_path / "new", "sequences")["u000"] == [*raw_rows(tmp_path / "old", "sequences")["u000"], "i1"]


def test_stage_continues_another_run(tmp_path):
    for number, users in ((0, 30), (1, 35)):
        folder = tmp_path / f"run{number}" / "ingest"
        folder.mkdir(parents=True)
        write(folder / "interactions", day(number, users, 40))
        seal(folder, "ingest", f"key{number}", {})
    stage.run(Config(), tmp_path / "run0")
    config = Config.load(None, [f"prepare.extend={tmp_path / 'run0' / 'prepare'}"])
    manifest = stage.run(config, tmp_path / "run1")
    old = Vocabulary.load(tmp_path / "run0" / "prepare" / VOCABULARY)
    new = Vocabulary.load(tmp_path / "run1" / "prepare" / VOCABULARY)
    assert new.ids[: len(old.ids)].tolist() == old.ids.tolist() and manifest.counts["vocabulary"] == new.hash
    assert manifest.counts["interactions"] == 1200
    other = Config.load(None, [f"prepare.extend={tmp_path / 'run0' / 'prepare'}", "prepare.max_length=9"])
    with pytest.raises(InputError, match="max_length"):
        stage.run(other, tmp_path / "run1")


def test_not_a_prepared_run(tmp_path):
    with pytest.raises(InputError, match=r"prepare\.extend"):
        extend(tmp_path, tmp_path, tmp_path / "out", SETTINGS, Engine("single", False, 1, 1 << 30, 1 << 20))
