"""What each data.format is made of: the fields of its log and the attributes of its items."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.data import amazon, yelp
from llmcfsr_merlin.data.interactions import Rules
from llmcfsr_merlin.data.items import ItemReader, TableAttributes
from llmcfsr_merlin.data.records import DelimitedParser, JsonParser, Layout, delimited_header
from llmcfsr_merlin.data.source import Source
from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.settings import DataConfig


@dataclass(frozen=True)
class Format:
    """How the files of one data.format are read."""

    name: str
    log: Layout
    item_fields: tuple[str, ...]
    attributes: Callable
    columns: dict[str, type]
    rules: Rules
    names: tuple[str, ...] = ()
    tables: bool = False
    """Delimited and Parquet files too."""

    def parser(self, source: Source) -> JsonParser | DelimitedParser | dict[str, str]:
        """The parser of one log file; for Parquet role -> column. InputError where a field is missing."""
        found, names, delimiter, header = self._columns(source)
        fields = self.log.fields(source, found, file_order=not header and not self.names)
        if "time" not in fields and (self.rules.start is not None or self.rules.end is not None):
            raise InputError(f"{source.path}: expected times for data.start and data.end, found no time column")
        if source.kind == "parquet":
            return fields
        if source.kind == "delimited":
            return DelimitedParser(fields, names, delimiter, header)
        return JsonParser.of(source, fields)

    def item_reader(self, source: Source) -> ItemReader:
        """The reader of one metadata file; InputError where it has no item id."""
        found, names, delimiter, header = self._columns(source)
        item = next((name for name in self.item_fields if name in found), None)
        if item is None:
            raise InputError(
                f"{source.path}: expected {self.name} metadata with a field {' or '.join(self.item_fields)} (item), "
                f"found {', '.join(map(str, found[:20]))}: check data.items and data.format"
            )
        if self.log.user and self.log.user[0] in found and not self.tables:
            raise InputError(f"{source.path}: expected item metadata, found reviews: give them as data.interactions")
        return ItemReader(self.attributes, self.columns, names, delimiter, header, self.rules.nulls)

    def _columns(self, source: Source) -> tuple[list[str], tuple[str, ...], str, bool]:
        if source.kind == "parquet" and self.tables:
            try:
                return list(pq.read_schema(source.path).names), (), ",", True
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{source.path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
        if source.kind == "delimited" and self.tables:
            roles = tuple(name[0] for name in (self.log.user, self.log.item, self.log.time, self.log.rating) if name)
            names, delimiter, header = delimited_header(source, self.names, roles)
            return list(names), names, delimiter, header
        if source.kind in ("json", "literal"):
            return list(dict.fromkeys(name for record in source.records() for name in record)), (), ",", True
        raise InputError(
            f"{source.path}: expected {self.name} JSON lines, found "
            f"{'Parquet' if source.kind == 'parquet' else repr(source.head[0][:60])}: set data.format=table for tables"
        )


def of(settings: DataConfig) -> Format:
    """The format that the settings name."""
    rules = Rules(_day(settings.start), _day(settings.end, 1), settings.min_rating, settings.null_values)
    if not settings.interactions:
        raise InputError("data.interactions: expected files of reviews or interactions, found none: name them")
    if settings.format == "table":
        columns = settings.columns
        named = columns.model_fields_set
        log = Layout(
            "a table",
            user=(columns.user,),
            item=(columns.item,),
            time=_optional(columns.time),
            order=_optional(columns.order),
            rating=_optional(columns.rating),
            file_order=columns.time is None,
            needs_rating=rules.min_rating is not None or ("rating" in named and columns.rating is not None),
            hint=lambda found: ": name the columns in data.columns (data.columns.names where there is no header line)",
        )
        item = (columns.item,)
        return Format("table", log, item, TableAttributes(columns.item), {}, rules, columns.names, True)
    source = yelp if settings.format == "yelp" else amazon
    return Format(settings.format, source.REVIEWS, source.ITEM_FIELDS, source.attributes, source.COLUMNS, rules)


def _optional(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _day(day, offset: int = 0) -> int | None:
    if day is None:
        return None
    return int(datetime.combine(day + timedelta(offset), time(), timezone.utc).timestamp())
