"""Item metadata: JSON lines, or Python literals (Amazon 2014) -> attribute columns."""

import ast
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from llmcfsr_merlin.contract import ITEM
from llmcfsr_merlin.data.lines import Block

TEXT, LIST = pa.string(), pa.list_(pa.string())
NO_ID, BAD_LINE = "items without an id", "item lines that are no object"


@dataclass(frozen=True)
class ItemFormat:
    """columns: attribute column -> (names in use, the first present one counts; TEXT or LIST). id: names of the id."""

    id: tuple[str, ...]
    columns: dict[str, tuple[tuple[str, ...], pa.DataType]] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(ITEM, TEXT), *((name, kind) for name, (_, kind) in self.columns.items())])


METADATA = {
    "amazon": ItemFormat(
        ("parent_asin", "asin"),
        {
            "title": (("title",), TEXT),
            "brand": (("brand", "store"), TEXT),
            "categories": (("category", "categories"), LIST),  # 2014: lists of lists
            "price": (("price",), TEXT),
            "features": (("feature", "features"), LIST),
            "description": (("description",), LIST),
        },
    ),
    "yelp": ItemFormat(
        ("business_id",),
        {
            "title": (("name",), TEXT),
            "categories": (("categories",), LIST),
            "city": (("city",), TEXT),
            "state": (("state",), TEXT),
            "attributes": (("attributes",), LIST),
            "is_open": (("is_open",), TEXT),
            "stars": (("stars",), TEXT),
            "review_count": (("review_count",), TEXT),
        },
    ),
}


def item_format(block: Block, item: str) -> ItemFormat:
    """The format of any JSON lines: every key of the first block, as a list where any value is one."""
    kinds: dict[str, pa.DataType] = {}
    for record in filter(None, map(parse_line, block.data.splitlines())):
        for name, value in record.items():
            if name != item:
                kinds[name] = LIST if isinstance(value, list | dict) or kinds.get(name) == LIST else TEXT
    return ItemFormat((item,), {name: ((name,), kind) for name, kind in kinds.items()})


def parse_items(block: Block, form: ItemFormat) -> tuple[pa.Table, Counter]:
    """Items of a block with an id; and how many lines were left out, by reason."""
    dropped: Counter = Counter()
    columns: dict[str, list] = {name: [] for name in form.schema.names}
    for line in block.data.splitlines():
        if not line.strip():
            continue
        record = parse_line(line)
        if record is None:
            dropped[BAD_LINE] += 1
            continue
        raw = next((str(record[name]).strip() for name in form.id if record.get(name) not in (None, "")), "")
        if not raw:
            dropped[NO_ID] += 1
            continue
        columns[ITEM].append(raw)
        for name, (sources, kind) in form.columns.items():
            value = next((record[source] for source in sources if record.get(source) not in (None, "", [], {})), None)
            columns[name].append(_as_list(name, value) if kind == LIST else _as_text(value))
    return pa.table(columns, schema=form.schema), dropped


def only_first(table: pa.Table, seen: set[str]) -> pa.Table:
    """The rows whose id was not seen before, which is remembered: metadata files repeat items."""
    keep = []
    for raw in table[ITEM].to_pylist():
        keep.append(raw not in seen)
        seen.add(raw)
    return table if all(keep) else table.filter(pa.array(keep))


def from_table(table: pa.Table, item: str) -> pa.Table:
    """A CSV or Parquet table of items: ids as text, lists stay lists, the rest becomes text, null where empty."""
    columns = {ITEM: table[item].cast(pa.string())}
    for name in table.column_names:
        if name == item:
            continue
        column = table[name]
        if pa.types.is_list(column.type):
            columns[name] = column.cast(LIST)
        else:
            text = column.cast(pa.string())
            columns[name] = pc.if_else(pc.equal(text, ""), None, text)
    return pa.table(columns)


def parse_line(line: bytes) -> dict | None:
    """A JSON object, or a Python literal as Amazon's metadata of 2014 has them (never evaluated); None for neither."""
    try:
        record = json.loads(line)
    except ValueError:
        try:
            record = ast.literal_eval(line.decode("utf-8", "replace").strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return record if isinstance(record, dict) else None


def _as_text(value) -> str | None:
    if isinstance(value, list):
        return ", ".join(_flat(value)) or None
    return None if value is None else str(value)


def _as_list(name: str, value) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return [f"{key}: {entry}" for key, entry in value.items() if entry not in (None, "", "None")] or None
    if isinstance(value, str):
        parts = value.split(",") if name == "categories" else [value]
        return [part.strip() for part in parts if part.strip()] or None
    return _flat(value if isinstance(value, list) else [value]) or None


def _flat(value) -> list[str]:
    """The strings of a nested list, in order, each once."""
    found: dict[str, None] = {}
    for entry in value:
        for text in _flat(entry) if isinstance(entry, list) else [str(entry)] if entry is not None else []:
            if text.strip():
                found.setdefault(text.strip())
    return list(found)
