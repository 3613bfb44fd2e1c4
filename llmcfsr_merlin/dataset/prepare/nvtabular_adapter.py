"""The use of NVTabular and merlin-core: the fitted Categorify, the sequence workflow, the Merlin schemas.

The only adapter: all other preprocessing works on files and arrays, and data is passed in open formats.
merlin_free.py replaces it if Merlin is not installed (adapters.py chooses), with the same output.
"""

import llmcfsr_merlin.runtime.merlin_compat  # noqa: F401

# isort: split
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, RATING, ROW, SUBSECOND, TIME, USER

with warnings.catch_warnings():  # Merlin warns that TensorFlow is missing
    warnings.simplefilter("ignore")
    import nvtabular as nvt
    from merlin.io import Dataset
    from merlin.schema import ColumnSchema, Schema, Tags
    from merlin.schema.io.schema_bp import FeatureType
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from google.protobuf import text_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.struct_pb2 import Struct
from tensorflow_metadata.proto.v0 import schema_pb2


def categorify(ids: pd.Series, save: Path | None = None) -> np.ndarray:
    """Encoded ids (int64) that NVTabular's Categorify assigns to raw ids sorted by descending frequency.

    The list is handed over because Categorify's own order of equally frequent items depends on the partitioning. The
    workflow is saved to `save` for users of merlin-systems; this project never loads it.
    """
    frame = pd.DataFrame({ITEM: ids.to_numpy()})
    with tempfile.TemporaryDirectory() as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "CPU mode is experimental", at every Dataset
        workflow = nvt.Workflow([ITEM] >> nvt.ops.Categorify(vocabs={ITEM: frame[ITEM]}, out_path=storage))
        codes = workflow.fit_transform(Dataset(frame, cpu=True)).compute()[ITEM].to_numpy().astype(np.int64)
        if save is not None:
            workflow.save(str(save))
    if not np.array_equal(codes, np.arange(FIRST_ITEM, FIRST_ITEM + len(codes))):
        raise RuntimeError("this NVTabular assigns encoded ids differently from names.FIRST_ITEM")
    return codes


def sequence_workflow(max_length: int) -> nvt.Workflow:
    """Encoded interactions (user, encoded item id, timestamp, subsecond, row) of ONE partition -> rows of split `test`.

    The definition of the leave-one-out splits: prepare() writes the same rows (sequences.py) and takes its schema from
    here, also for splits in time, whose rows have the same form. Groupby works per partition and must not follow a
    filter: give it whole users, with a fresh index.
    """
    grouped = [USER, ITEM, TIME, SUBSECOND, ROW] >> nvt.ops.Groupby(
        groupby_cols=[USER], sort_cols=[TIME, SUBSECOND, ROW], aggs={ITEM: ["list"]}, name_sep="."
    )
    items = grouped[f"{ITEM}.list"] >> nvt.ops.Rename(name=ITEM) >> nvt.ops.ListSlice(-(max_length + 1))
    return nvt.Workflow(
        (grouped[USER] >> nvt.ops.AddTags([Tags.USER_ID]))
        + (items >> nvt.ops.AddTags([Tags.ITEM_ID, Tags.ITEM, Tags.LIST, Tags.CATEGORICAL]))
    )


def interaction_schema() -> Schema:
    """Merlin schema of ingest/interactions."""
    return Schema([
        ColumnSchema(USER, dtype="string", tags=[Tags.USER_ID, Tags.USER]),
        ColumnSchema(ITEM, dtype="string", tags=[Tags.ITEM_ID, Tags.ITEM]),
        ColumnSchema(TIME, dtype="int64", tags=[Tags.TIME]),
        ColumnSchema(SUBSECOND, dtype="float64"),
        ColumnSchema(ROW, dtype="int64"),
        ColumnSchema(RATING, dtype="float32", tags=[Tags.CONTINUOUS]),
    ])  # fmt: skip


def split_schema(items: int, max_length: int) -> Schema:
    """Merlin schema of train/, valid/ and test/: `items` real items, at most max_length + 1 of them in a row."""
    encoded = interaction_schema().select_by_name([USER, TIME, SUBSECOND, ROW]) + Schema(
        [ColumnSchema(ITEM, dtype="int64")]
    )
    schema = sequence_workflow(max_length).fit_schema(encoded).output_schema
    column = schema[ITEM]
    cardinality = items + FIRST_ITEM
    properties = {
        "domain": {"min": 0, "max": cardinality - 1, "name": ITEM},
        "value_count": {"min": 1, "max": max_length + 1},
    }
    # A new column rather than the old one changed: Categorify's properties would carry paths of this machine.
    return Schema([
        ColumnSchema(USER, dtype="string", tags=schema[USER].tags),
        ColumnSchema(ITEM, dtype="int64", tags=column.tags, properties=properties, is_list=True, is_ragged=True),
    ])  # fmt: skip


def write_schema(schema: Schema, path: Path) -> None:
    """Write a Merlin schema as protobuf text, the same bytes under every release of protobuf."""
    metadata = TensorflowMetadata.from_merlin_schema(schema)
    for feature in metadata.proto_schema.feature:
        if schema[feature.name].dtype.element_type.value == "string":  # merlin-core does not write the type
            feature.type = FeatureType.BYTES
        feature.annotation.tag.sort()  # their order is that of a set
    message = schema_pb2.Schema.FromString(bytes(metadata.proto_schema))
    for feature in message.feature:
        for extra in feature.annotation.extra_metadata:  # a map, in the order of a hash whose seed may be random
            extra.value = Struct.FromString(extra.value).SerializeToString(deterministic=True)
    # Newer releases write the map out if they know its type, which not all readers do: the empty pool knows none.
    Path(path).write_text(text_format.MessageToString(message, descriptor_pool=DescriptorPool()), encoding="ascii")


def write_split_schema(items: int, max_length: int, path: Path) -> None:
    """Write the schema of train/, valid/ and test/: `items` real items, at most max_length + 1 of them in a row."""
    write_schema(split_schema(items, max_length), path)


def read_schema(path: Path) -> Schema:
    """Read a Merlin schema from protobuf text."""
    return TensorflowMetadata.from_proto_text_file(str(Path(path).parent), Path(path).name).to_merlin_schema()


def longest_row(path: Path) -> int:
    """The longest row of the splits according to their schema."""
    return int(read_schema(path)[ITEM].value_count.max)
