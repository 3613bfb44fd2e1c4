"""The in-memory vocabulary gives the codes of NVTabular's own transform."""

import tests.needs_merlin  # noqa: F401

# isort: split
import os
from pathlib import Path

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.io import Dataset

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, OOV
from llmcfsr_merlin.dataset.prepare.nvtabular_adapter import categorify
from llmcfsr_merlin.dataset.raw.fields.ids import clean_id
from llmcfsr_merlin.dataset.vocabulary import Vocabulary

DATA = Path(os.environ.get("LLMCFSR_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
HOSTILE = [
    "", " ", "a", "a ", " a", "A", "á", "a\u0301", "日本", "💥", "\u0000", "a\u0000", "a\u0000b", "\t", "\n",
    "\ufeffa", "x" * 100_000, "1", "01", "1.0", "1e0", "-1", "+1", "٣", "nan", "NaN", "None", "null", "NULL", "<NA>",
    "True", "inf", "0", "2", "\\", "'; --",
]  # fmt: skip

# What cleaning of ids changes (spaces around them) is in no vocabulary: NVTabular is given the cleaned ids.
HOSTILE = [raw for raw in HOSTILE if clean_id(raw) == raw]


def nvtabular_codes(workflow: nvt.Workflow, histories: list[list[str]]) -> list[list[int]]:
    asked = Dataset(pd.DataFrame({ITEM: histories}), cpu=True)
    return [list(codes) for codes in workflow.transform(asked).compute()[ITEM]]


@pytest.mark.parametrize("name", ["yelp", "amazon_beauty"])
@pytest.mark.parametrize("storage", ["str", "int"])
def test_full_vocabulary_of_a_real_log(tmp_path, name, storage):
    """Fitted by NVTabular on the log itself; raw ids as text, and as the integers that they hold or are numbered by."""
    source = DATA / name / "interactions.csv.gz"
    if not source.is_file():
        pytest.skip(f"no data in {DATA}; set LLMCFSR_DATA")
    log = pd.read_csv(source, dtype={"user_id": str, "item_id": str}, usecols=["user_id", "item_id"])
    if storage == "int":
        log[ITEM] = log[ITEM].factorize()[0] * 7 + 1
    workflow = nvt.Workflow([ITEM] >> nvt.ops.Categorify(out_path=str(tmp_path)))
    workflow.fit(Dataset(log[[ITEM]], cpu=True))
    order = pd.read_parquet(tmp_path / "categories" / f"unique.{ITEM}.parquet")[ITEM]
    vocabulary = Vocabulary([str(raw) for raw in order])
    assert len(vocabulary) == log[ITEM].nunique() + FIRST_ITEM

    everything = workflow.transform(Dataset(pd.DataFrame({ITEM: order}), cpu=True)).compute()[ITEM].tolist()
    assert vocabulary.encode(order) == everything == list(range(FIRST_ITEM, len(vocabulary)))
    histories = log.groupby("user_id")[ITEM].agg(list).head(2000).tolist()
    unknown = -5 if storage == "int" else "never seen"
    histories = [[*history, unknown] if row % 3 == 0 else history for row, history in enumerate(histories)]
    assert [vocabulary.encode(history) for history in histories] == nvtabular_codes(workflow, histories)


def test_hostile_ids_known_and_unknown(tmp_path):
    # Without null bytes: NVTabular's own fit counts "\0" with "" and "a\0" with "a". Our fit hands it the list (below).
    hostile = [raw for raw in HOSTILE if "\0" not in raw]
    known, unknown = hostile[::2], hostile[1::2]
    workflow = nvt.Workflow([ITEM] >> nvt.ops.Categorify(out_path=str(tmp_path)))
    counts = range(len(known), 0, -1)
    log = pd.DataFrame({ITEM: np.repeat(np.array(known, dtype=object), counts)})
    workflow.fit(Dataset(log, cpu=True))
    vocabulary = Vocabulary(known)
    # One id a history: what NVTabular does with one id cannot hide behind its neighbours.
    histories = [[raw] for raw in hostile] + [known, unknown, hostile[::-1]]
    expected = nvtabular_codes(workflow, histories)
    assert [vocabulary.encode(history) for history in histories] == expected
    assert {code for history in expected[1 : len(hostile) : 2] for code in history} == {OOV}


def test_hostile_ids_through_our_own_fit(tmp_path):
    """categorify() of prepare, saved and loaded as merlin-systems would."""
    categorify(pd.Series(HOSTILE), tmp_path / "workflow")
    workflow = nvt.Workflow.load(str(tmp_path / "workflow"))
    vocabulary = Vocabulary(HOSTILE)
    asked = [[raw] for raw in HOSTILE] + [["never seen", "a"]]
    assert [vocabulary.encode(history) for history in asked] == nvtabular_codes(workflow, asked)
    codes = [code for history in asked[:-1] for code in vocabulary.encode(history)]
    assert vocabulary.decode(np.array(codes)).tolist() == HOSTILE
