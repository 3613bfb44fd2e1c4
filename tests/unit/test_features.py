"""Schemas, equality with NVTabular's own sequence workflow, bad input of stage prepare, choice of the engine."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llmcfsr_merlin.pipelines import prepare as stage
from merlin.io import Dataset
from merlin.schema import Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from llmcfsr_merlin.cluster import Engine, engine
from llmcfsr_merlin.config import ClusterConfig, Config, PrepareConfig
from llmcfsr_merlin.contract import ITEM, ROW, SCHEMA, SPLITS, TIME, USER, VOCABULARY, resource
from llmcfsr_merlin.errors import InputError, MissingDependency
from llmcfsr_merlin.features import interaction_schema, prepare, sequence_workflow
from llmcfsr_merlin.stage import Manifest, seal
from llmcfsr_merlin.vocabulary import Vocabulary

SINGLE = Engine("single", False, 1, 1 << 30, 1 << 30)


def log_of(rows: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame({
        USER: [f"u{x}" for x in random.integers(0, 20, rows)], ITEM: [f"i{x}" for x in random.integers(0, 30, rows)],
        TIME: random.integers(0, 50, rows), ROW: np.arange(rows), "rating": np.float32(5),
    })  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run" / "ingest" / "interactions"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pandas(log_of(), preserve_index=False), folder / "part-00000.parquet")
    seal(tmp_path / "run" / "ingest", "ingest", "key", {})
    return tmp_path / "run"


def load_schema(path, name):
    return TensorflowMetadata.from_proto_text_file(str(path), name).to_merlin_schema()


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
    assert "//" not in (out / SCHEMA).read_text() and "categories" not in (out / SCHEMA).read_text()
    assert Manifest.load(out).counts == manifest.counts


def test_split_schema(run_dir):
    import transformers4rec.torch as tr

    stage.run(Config.load(None, ["prepare.max_length=7"]), run_dir)
    out = run_dir / "prepare"
    schema, items = load_schema(out, SCHEMA), len(pq.read_table(out / VOCABULARY))
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


@pytest.mark.parametrize("name", ["interactions", "items", "sequences"])
def test_shipped_schemas(run_dir, name):
    schema = load_schema(resource("schemas"), f"{name}.pbtxt")
    assert len(schema) >= 1 and "//" not in (resource("schemas") / f"{name}.pbtxt").read_text()
    if name == "interactions":
        written = pq.read_table(run_dir / "ingest" / "interactions")
        assert set(written.schema.names) == set(schema.column_names) == set(interaction_schema().column_names)
    if name == "sequences":
        stage.run(Config(), run_dir)
        found = load_schema(run_dir / "prepare", SCHEMA)
        assert schema.column_names == found.column_names
        for column in schema:
            assert (column.tags, column.dtype.name) == (found[column.name].tags, found[column.name].dtype.name)


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


def test_engine_choice(capfd):
    with engine(ClusterConfig(partition_size="64MB", workers=3)) as chosen:
        assert (chosen.kind, chosen.workers, chosen.partition) == ("single", 3, 64_000_000)
    assert "partitions of" in capfd.readouterr().err
    with pytest.raises(MissingDependency, match="needs a CUDA GPU"), engine(ClusterConfig(kind="cuda")):
        pass
    with pytest.raises(InputError, match=r"cluster\.memory_limit"), engine(ClusterConfig(memory_limit="much")):
        pass


def test_full_disk_is_one_clear_line():
    def full(_):
        raise OSError(28, "No space left on device", "/run/x")

    with pytest.raises(InputError, match=r"disk is full .*/run/x"):
        SINGLE.map(full, [1], "shuffle")
