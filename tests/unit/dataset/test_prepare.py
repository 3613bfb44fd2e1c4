"""Schemas, equality with NVTabular's own sequence workflow, bad input of stage prepare, choice of the engine."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from merlin.io import Dataset
from merlin.schema import Tags

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset import prepare_stage as stage
from llmcfsr_merlin.dataset.names import ITEM, ROW, SCHEMA, SEQUENCES, SPLITS, SUBSECOND, TIME, USER, VOCABULARY
from llmcfsr_merlin.dataset.prepare.nvtabular_adapter import (
    interaction_schema,
    read_schema,
    sequence_workflow,
    write_schema,
)
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.runtime.stage import Manifest, seal

SINGLE = Engine("single", False, 1, 1 << 30, 1 << 30)


def log_of(rows: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame({
        USER: [f"u{x}" for x in random.integers(0, 20, rows)], ITEM: [f"i{x}" for x in random.integers(0, 30, rows)],
        TIME: random.integers(0, 50, rows), SUBSECOND: random.choice([0, 0.5, 0.75], rows), ROW: np.arange(rows),
        "rating": np.float32(5),
    })  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run" / "ingest" / "interactions"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pandas(log_of(), preserve_index=False), folder / "part-00000.parquet")
    seal(tmp_path / "run" / "ingest", "ingest", "key", {})
    return tmp_path / "run"


def test_stage_writes_the_contract_and_skips_when_true(run_dir):
    manifest = stage.run(Config(), run_dir)
    out = run_dir / "prepare"
    vocabulary = Vocabulary.load(out / VOCABULARY)
    assert manifest.counts["vocabulary"] == vocabulary.hash and manifest.counts["items"] == len(vocabulary) - 3
    manifest.verify(out)
    assert not list(out.glob(".*")) and {name.split("/")[0] for name in manifest.files} == {
        "schema.pbtxt", "sequences", "test", "train", "valid", "vocabulary.parquet", "workflow"
    }  # fmt: skip
    before = (out / SCHEMA).stat().st_mtime_ns
    clustered = Config.load(None, ["cluster.workers=1", "cluster.partition_size=1KB"])
    assert stage.run(clustered, run_dir).key == manifest.key and (out / SCHEMA).stat().st_mtime_ns == before
    unused = Config.load(None, ["prepare.seed=7"])
    assert stage.run(unused, run_dir).key == manifest.key and (out / SCHEMA).stat().st_mtime_ns == before
    assert "//" not in (out / SCHEMA).read_text() and "categories" not in (out / SCHEMA).read_text()
    assert Manifest.load(out).counts == manifest.counts
    assert stage.run(Config.load(None, ["prepare.ties=shuffle"]), run_dir).key != manifest.key


def test_split_schema(run_dir):
    from llmcfsr_merlin.training.t4rec import tr

    stage.run(Config.load(None, ["prepare.max_length=7"]), run_dir)
    out = run_dir / "prepare"
    schema, items = read_schema(out / SCHEMA), len(pq.read_table(out / VOCABULARY))
    item = schema[ITEM]
    for tag in (Tags.ITEM_ID, Tags.LIST, Tags.CATEGORICAL):
        assert schema.select_by_tag(tag).column_names == [ITEM]
    assert schema.select_by_tag(Tags.USER_ID).column_names == [USER]
    assert item.int_domain.max == items + 2 and item.value_count.max == 8 and item.is_ragged
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema.select_by_name(ITEM), max_sequence_length=8, masking="causal", d_output=8
    )
    assert inputs.item_embedding_table.num_embeddings == items + 3
    for split in SPLITS:
        written = pq.read_table(out / split)
        assert written.schema.names == schema.column_names
        assert written.schema.field(ITEM).type.value_type == pa.int64()
        lengths = written[ITEM].combine_chunks().value_lengths().to_numpy()
        assert (
            lengths.max() <= 8
            and lengths.min() >= 2
            and written[ITEM].combine_chunks().flatten().to_numpy().max() < items + 3
        )


@pytest.mark.parametrize("max_length", [3, 50])
def test_equals_nvtabular_groupby_and_list_slice(tmp_path, max_length):
    log = log_of()
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), tmp_path / "in" / "part-00000.parquet")
    prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(filter="none", max_length=max_length), SINGLE)
    vocabulary = Vocabulary.load(tmp_path / "out" / VOCABULARY)
    log[ITEM] = vocabulary.encode(log[ITEM])
    theirs = sequence_workflow(max_length).fit_transform(Dataset(log, cpu=True)).compute().sort_values(USER)
    ours = pq.read_table(tmp_path / "out" / "test").to_pandas()
    assert ours[USER].tolist() == theirs[USER].tolist()
    assert ours[ITEM].map(list).tolist() == theirs[ITEM].map(list).tolist()


def test_one_item_cannot_be_ranked(tmp_path):
    """Said before anything is trained."""
    log = log_of(20).assign(**{ITEM: "i1", USER: "u1"})
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), tmp_path / "in" / "part-00000.parquet")
    with pytest.raises(InputError, match="expected at least 2 items to rank, found 1 left of 1"):
        prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(), SINGLE)


def kinds(schema) -> dict:
    """Column -> (dtype, is a list), of a Merlin or an Arrow schema."""
    if isinstance(schema, pa.Schema):
        inner = {field.name: getattr(field.type, "value_type", field.type) for field in schema}
        names = {pa.string(): "str", pa.int64(): "int64", pa.float32(): "float32", pa.float64(): "float64"}
        names[pa.large_string()] = "str"  # what pandas 3 writes
        return {name: (names[inner[name]], pa.types.is_list(schema.field(name).type)) for name in schema.names}
    return {column.name: (column.dtype.name, bool(column.is_list)) for column in schema}


def test_written_files_are_what_the_schemas_say(run_dir, tmp_path):
    stage.run(Config(), run_dir)
    out = run_dir / "prepare"
    for split in SPLITS:
        assert kinds(pq.read_schema(next((out / split).iterdir()))) == kinds(read_schema(out / SCHEMA))
    assert kinds(pq.read_schema(next((out / SEQUENCES).iterdir()))) == kinds(read_schema(out / SCHEMA))
    names = ("interactions", "items", "sequences")
    shipped = {name: read_schema(resource("schemas") / f"{name}.pbtxt") for name in names}
    assert kinds(shipped["sequences"]) == kinds(read_schema(out / SCHEMA))
    log = pq.read_schema(next((run_dir / "ingest" / "interactions").iterdir()))
    assert kinds(shipped["interactions"]) == kinds(interaction_schema()) == kinds(log)
    written = read_schema(out / SCHEMA)
    for column in shipped["sequences"]:
        assert column.tags == written[column.name].tags
    for schema in (written, *shipped.values()):
        write_schema(schema, tmp_path / "again.pbtxt")
        again = read_schema(tmp_path / "again.pbtxt")
        assert again == schema and [column.properties for column in again] == [column.properties for column in schema]
        assert "//" not in (tmp_path / "again.pbtxt").read_text()  # no path of this machine


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
    log = log_of(20)
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
