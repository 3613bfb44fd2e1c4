"""What prepare writes is what NVTabular's own workflow and the Merlin schemas say, with Merlin and without."""

import tests.needs_merlin  # noqa: F401

# isort: split
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from merlin.io import Dataset
from merlin.schema import Tags

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset import prepare_stage as stage
from llmcfsr_merlin.dataset.names import ITEM, SCHEMA, SEQUENCES, SPLITS, TIED, USER, VOCABULARY
from llmcfsr_merlin.dataset.prepare import merlin_free, nvtabular_adapter
from llmcfsr_merlin.dataset.prepare.nvtabular_adapter import (
    interaction_schema,
    read_schema,
    sequence_workflow,
    write_schema,
)
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.layout import resource
from tests.unit.dataset.world import random_log

SINGLE = Engine("single", False, 1, 1 << 30, 1 << 30)


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
        assert written.schema.names == schema.column_names + ([TIED] if split == "train" else [])
        assert written.schema.field(ITEM).type.value_type == pa.int64()
        lengths = written[ITEM].combine_chunks().value_lengths().to_numpy()
        assert (
            lengths.max() <= 8
            and lengths.min() >= 2
            and written[ITEM].combine_chunks().flatten().to_numpy().max() < items + 3
        )


@pytest.mark.parametrize("max_length", [3, 50])
def test_equals_nvtabular_groupby_and_list_slice(tmp_path, max_length):
    log = random_log()
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), tmp_path / "in" / "part-00000.parquet")
    prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(filter="none", max_length=max_length), SINGLE)
    vocabulary = Vocabulary.load(tmp_path / "out" / VOCABULARY)
    log[ITEM] = vocabulary.encode(log[ITEM])
    theirs = sequence_workflow(max_length).fit_transform(Dataset(log, cpu=True)).compute().sort_values(USER)
    ours = pq.read_table(tmp_path / "out" / "test").to_pandas()
    assert ours[USER].tolist() == theirs[USER].tolist()
    assert ours[ITEM].map(list).tolist() == theirs[ITEM].map(list).tolist()


def kinds(schema) -> dict:
    """Column -> (dtype, is a list), of a Merlin or an Arrow schema."""
    if isinstance(schema, pa.Schema):
        inner = {field.name: getattr(field.type, "value_type", field.type) for field in schema}
        names = {pa.string(): "str", pa.int64(): "int64", pa.float32(): "float32", pa.float64(): "float64"}
        names[pa.bool_()] = "bool"
        names[pa.large_string()] = "str"  # what pandas 3 writes
        return {name: (names[inner[name]], pa.types.is_list(schema.field(name).type)) for name in schema.names}
    return {column.name: (column.dtype.name, bool(column.is_list)) for column in schema}


def test_written_files_are_what_the_schemas_say(run_dir, tmp_path):
    stage.run(Config(), run_dir)
    out = run_dir / "prepare"
    for name in (SEQUENCES, *SPLITS):  # the schema is of what models read; who counts transitions reads ties too
        more = {TIED: ("bool", True)} if name in (SEQUENCES, "train") else {}
        assert kinds(pq.read_schema(next((out / name).iterdir()))) == kinds(read_schema(out / SCHEMA)) | more
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
    again = tmp_path / "again.pbtxt"
    nvtabular_adapter.write_split_schema(1000, 50, again)
    assert again.read_bytes() == (resource("schemas") / "sequences.pbtxt").read_bytes()


@pytest.mark.parametrize(
    ("items", "max_length"),
    # The lengths stand there as doubles too, whose bytes the text escapes: here to \" \\ \' \n \r \t and octal numbers.
    [(1, 8), (2, 111), (3, 4134), (4, 4105), (5, 4108), (6, 4104), (12_101, 50), (10**6, 200), (2**31, 1000)],
)
def test_both_adapters_write_the_same_bytes(tmp_path, items, max_length):
    for adapter in (nvtabular_adapter, merlin_free):
        adapter.write_split_schema(items, max_length, tmp_path / f"{adapter.__name__}.pbtxt")
    theirs, ours = ((tmp_path / f"{adapter.__name__}.pbtxt") for adapter in (nvtabular_adapter, merlin_free))
    assert ours.read_bytes() == theirs.read_bytes()
    for adapter in (nvtabular_adapter, merlin_free):
        assert adapter.longest_row(ours) == max_length + 1


def test_both_adapters_number_alike(tmp_path):
    ids = pd.Series([f"item {number}" for number in (5, 1, 9)])
    theirs, ours = (adapter.categorify(ids) for adapter in (nvtabular_adapter, merlin_free))
    assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
