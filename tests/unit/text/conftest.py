"""Tiny language models of random weights, and a small items table."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_models import write_bert, write_llama


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a 2-layer BERT encoder, hidden 32, random weights."""
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a 2-layer LLaMA, hidden 32, random weights, no padding token (as LLaMA has none)."""
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


def catalogue(count=40):
    """Items whose titles differ; item 3 has no attribute at all, item 4 no brand."""
    colours, things, brands = (
        ("red", "blue", "green"),
        ("shampoo", "polish", "cream", "soap"),
        ("acme", "bolt", "corex"),
    )
    rows = []
    for number in range(count):
        rows.append(
            {
                "item_id": f"i{number}",
                "title": f"{colours[number % 3]} {things[number % 4]} {number}",
                "brand": brands[number % 3],
                "categories": [("hair", "nail", "skin")[number % 3], things[number % 4]],
            }
        )
    for row in rows[3:4]:
        row.update(title=None, brand="", categories=[])
    for row in rows[4:5]:
        row.update(brand=None)
    return rows


@pytest.fixture
def items_dir(tmp_path):
    """The catalogue in two part files."""
    return write_items(tmp_path / "items", catalogue())


def write_items(folder, rows, parts=2):
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("title", pa.string()),
            ("brand", pa.string()),
            ("categories", pa.list_(pa.string())),
        ]
    )
    size = -(-len(rows) // parts)
    for part in range(parts):
        chunk = rows[part * size : (part + 1) * size]
        pq.write_table(
            pa.Table.from_pylist(chunk, schema=schema), folder / f"part-{part:05d}.parquet", row_group_size=7
        )
    return folder
