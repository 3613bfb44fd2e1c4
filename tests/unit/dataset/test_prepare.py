"""Stage prepare writes its contract, and bad input is one line. Against NVTabular itself: test_nvtabular.py."""

import importlib.util
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset import prepare_stage as stage
from llmcfsr_merlin.dataset.names import ITEM, SCHEMA, SEQUENCES, SPLITS, TIME, USER, VOCABULARY, WORKFLOW
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import Manifest, _key
from tests.unit.dataset.world import random_log

SINGLE = Engine("single", False, 1, 1 << 30, 1 << 30)


def test_stage_writes_the_contract_and_skips_when_true(run_dir):
    manifest = stage.run(Config(), run_dir)
    out = run_dir / "prepare"
    vocabulary = Vocabulary.load(out / VOCABULARY)
    assert manifest.counts["vocabulary"] == vocabulary.hash and manifest.counts["items"] == len(vocabulary) - 3
    manifest.verify(out)
    merlin = importlib.util.find_spec("nvtabular") is not None
    written = {SCHEMA, SEQUENCES, *SPLITS, VOCABULARY} | ({WORKFLOW} if merlin else set())
    assert not list(out.glob(".*")) and {name.split("/")[0] for name in manifest.files} == written
    assert manifest.counts["workflow"] == ("saved" if merlin else "left out: NVTabular is not installed")
    before = (out / SCHEMA).stat().st_mtime_ns
    clustered = Config.load(None, ["cluster.workers=1", "cluster.partition_size=1KB"])
    assert stage.run(clustered, run_dir).key == manifest.key and (out / SCHEMA).stat().st_mtime_ns == before
    unused = Config.load(None, ["prepare.seed=7"])
    assert stage.run(unused, run_dir).key == manifest.key and (out / SCHEMA).stat().st_mtime_ns == before
    assert "//" not in (out / SCHEMA).read_text() and "categories" not in (out / SCHEMA).read_text()
    assert Manifest.load(out).counts == manifest.counts
    assert stage.run(Config.load(None, ["prepare.ties=shuffle"]), run_dir).key != manifest.key


def test_settings_of_the_other_split_leave_a_run_as_it_is(run_dir):
    """Also one of a version that had no such settings."""
    settings = {"filter": "k_core", "min_user": 3, "min_item": 3, "min_sequence": 3, "max_length": 50, "extend": None}
    key = stage.run(Config(), run_dir).key
    assert key == _key("prepare", settings, {"ingest": Manifest.load(run_dir / "ingest").key})
    assert stage.run(Config.load(None, ["prepare.test_quantile=0.95"]), run_dir).key == key


@pytest.mark.parametrize("settings, message", [
    (["valid_from=2020-01-01"], "valid_from needs split=temporal, found split=leave_one_out"),
    (["split=temporal", "valid_from=2020-02-01", "test_from=2020-02-01"], "must be before test_from"),
    (["split=temporal", "test_quantile=0.8"], "valid_quantile (0.8) must be below test_quantile (0.8)"),
    (["split=temporal", "valid_from=soon"], "prepare.valid_from"),
    (["split=temporal", "targets=middle"], "prepare.targets"),
])  # fmt: skip
def test_settings_of_a_split_that_contradict_each_other(settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Config.load(None, [f"prepare.{setting}" for setting in settings])


def test_one_item_cannot_be_ranked(tmp_path):
    """Said before anything is trained."""
    log = random_log(20).assign(**{ITEM: "i1", USER: "u1"})
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), tmp_path / "in" / "part-00000.parquet")
    with pytest.raises(InputError, match="expected at least 2 items to rank, found 1 left of 1"):
        prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(), SINGLE)


def test_filters_that_leave_nothing_say_what_to_lower(run_dir):
    for overrides, words in (
        (["prepare.min_user=1000"], "prepare.min_user"),
        (["prepare.min_item=1000", "prepare.filter=one_pass"], "prepare.min_item"),
        (["prepare.min_sequence=1000"], "prepare.min_sequence=1000"),
    ):
        with pytest.raises(InputError, match=words):
            stage.run(Config.load(None, overrides), run_dir)
        assert not (run_dir / "prepare").exists()


def test_bad_input(tmp_path):
    log = random_log(20)
    cases = {
        "no column": log.drop(columns=TIME),
        "integer ids": log.assign(item_id=np.arange(20)),
        "all null": log.assign(user_id=pd.Series([None] * 20, dtype="string")),
        "no rows": log.head(0).astype({USER: "string", ITEM: "string"}),
    }
    with pytest.raises(InputError, match="llmcfsr ingest"):
        prepare(tmp_path, tmp_path / "out", PrepareConfig(), SINGLE)
    for name, frame in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "part-00000.parquet")
        with pytest.raises(InputError) as caught:
            prepare(folder, tmp_path / "out", PrepareConfig(), SINGLE)
        assert "\n" not in str(caught.value)
    (folder / "part-00000.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read"):
        prepare(folder, tmp_path / "out", PrepareConfig(), SINGLE)
