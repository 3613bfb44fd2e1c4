"""The raw formats (data.format): fields of the log and attributes of the items."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.raw import amazon, yelp
from llmcfsr_merlin.dataset.raw.files.columnar import ParquetParser, refuse_lists
from llmcfsr_merlin.dataset.raw.files.delimited import DelimitedParser
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect, Text, detect
from llmcfsr_merlin.dataset.raw.files.source import Source
from llmcfsr_merlin.dataset.raw.interactions import Rules
from llmcfsr_merlin.dataset.raw.metadata import ItemReader, TableAttributes
from llmcfsr_merlin.dataset.raw.records import JsonParser, Layout, place
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import load_class

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """How the files of one data.format are read."""

    name: str
    log: Layout
    item_fields: tuple[str | int, ...]
    attributes: Callable
    columns: dict[str, type]
    rules: Rules
    tables: bool = False
    """Delimited and Parquet files too."""
    text: Text = Text("data.")  # noqa: RUF009 (frozen)
    """Of delimited logs."""
    item_text: Text = Text("data.item_")  # noqa: RUF009
    """Of delimited metadata."""

    def parser(self, source: Source) -> JsonParser | DelimitedParser | ParquetParser:
        """The parser of one log file; InputError if a field is missing."""
        names, dialect = self._columns(source, self.text)
        parted = [name for name in source.partitions if name not in names]
        headless = dialect is not None and dialect.guessed and len(names) == 2
        fields = self.log.fields(source, [*names, *parted], file_order=headless)
        if "time" not in fields and (self.rules.start is not None or self.rules.end is not None):
            raise InputError(f"{source.path}: expected times for data.start and data.end, found no time column")
        constants = {
            role: source.partitions[parted[position - len(names)]]
            for role, position in fields.items()
            if position >= len(names)
        }
        fields = {role: position for role, position in fields.items() if position < len(names)}
        if dialect is not None:
            return DelimitedParser(fields, dialect, constants)
        if source.kind == "parquet":
            refuse_lists(source, fields)
            encoding = source.encoding if source.encoding_set else None
            return ParquetParser(source.path, tuple(names), fields, constants, encoding)
        return JsonParser.of(source, {role: names[position] for role, position in fields.items()}, constants)

    def item_reader(self, source: Source) -> ItemReader:
        """The reader of one metadata file; InputError if it has no item id."""
        names, dialect = self._columns(source, self.item_text)
        found = (place(source, names, name, "data.item_columns.item") for name in self.item_fields)
        item = next((position for position in found if position is not None), None)
        if item is None:
            fix = "name the column in data.item_columns.item (data.item_columns.names if there is no header line)"
            raise InputError(
                f"{source.path}: expected {self.name} metadata with a field {' or '.join(map(str, self.item_fields))} "
                f"(item), found {', '.join(map(str, names[:20]))}: "
                f"{fix if self.tables else 'check data.items and data.format'}"
            )
        if self.log.user and self.log.user[0] in names and not self.tables:
            raise InputError(f"{source.path}: expected item metadata, found reviews: give them as data.interactions")
        attributes = self.attributes
        if self.tables:
            for name in dict.fromkeys(names):
                if name:
                    place(source, names, name)
            if dialect and not names[item]:
                names[item] = f"column {item}"
                dialect = replace(dialect, names=tuple(names))
            attributes = TableAttributes(names[item])
        return ItemReader(attributes, self.columns, dialect, self.rules.nulls)

    def _columns(self, source: Source, text: Text) -> tuple[list[str], Dialect | None]:
        if source.kind == "parquet" and self.tables:
            try:
                return list(pq.read_schema(source.path).names), None
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{source.path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
        if source.kind == "delimited" and self.tables:
            log = text is self.text
            columns = (self.log.user, self.log.item, self.log.time, self.log.rating)
            roles = [names[0] for names in columns if names]
            dialect = detect(source, text, roles if log else [*self.item_fields, "title"])
            if dialect.guessed:
                shown = ", ".join(name or "-" for name in dialect.names)
                _log.info("%s: no header line; columns: %s (set %s if this is wrong)", source.path, shown, text.columns)
            return list(dialect.names), dialect
        if source.kind in ("json", "literal"):
            return list(dict.fromkeys(name for record in source.records() for name in record)), None
        raise InputError(
            f"{source.path}: expected {self.name} JSON lines, found "
            f"{'Parquet' if source.kind == 'parquet' else repr(source.head[0][:60])}: set data.format=table for tables"
        )


def of(settings: DataConfig) -> Format:
    """The format named in the settings; your own is a function (settings, rules) -> Format."""
    rules = Rules(_day(settings.start), _day(settings.end, 1), settings.min_rating, settings.null_values)
    if not settings.interactions:
        raise InputError("data.interactions: expected files of reviews or interactions, found none: list them")
    if ":" in settings.format:
        return load_class(settings.format)(settings, rules)
    if settings.format == "table":
        columns = settings.columns
        named = columns.model_fields_set
        log = Layout(
            "a table",
            user=(columns.user,),
            item=(columns.item,),
            time=_optional(columns.time),
            order=_optional(columns.order),
            tie=_optional(columns.tie),
            rating=_optional(columns.rating),
            file_order=columns.time is None,
            needs_rating=rules.min_rating is not None or ("rating" in named and columns.rating is not None),
            hint=lambda found: ": name the columns in data.columns (data.columns.names if there is no header line)",
        )
        names = settings.item_columns
        item = columns.item if names.item is None else names.item
        roles = (columns.user, columns.item, columns.time, columns.order, columns.tie, columns.rating)
        placed = any(isinstance(name, int) for name in roles)
        text = Text("data.", settings.delimiter, settings.quoting, settings.header, columns.names, roles[:2], placed)
        item_text = Text(
            "data.item_", settings.item_delimiter, settings.item_quoting, settings.item_header, names.names, (item,),
            isinstance(item, int),
        )  # fmt: skip
        return Format("table", log, (item,), TableAttributes, {}, rules, True, text, item_text)
    source = yelp if settings.format == "yelp" else amazon
    return Format(settings.format, source.REVIEWS, source.ITEM_FIELDS, source.attributes, source.COLUMNS, rules)


def _optional(name: str | int | None) -> tuple[str | int, ...]:
    return () if name is None else (name,)


def _day(day: date | None, offset: int = 0) -> int | None:
    if day is None:
        return None
    return int(datetime.combine(day + timedelta(offset), time(), timezone.utc).timestamp())
