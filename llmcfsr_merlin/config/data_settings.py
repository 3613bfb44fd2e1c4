"""Section `data`: where the logs are and how they are read (stage `ingest`)."""

import codecs
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from llmcfsr_merlin.config.section import Section, known_or_own

FORMATS = ("table", "amazon", "yelp", "synthetic")
NULL_VALUES = ("NULL", "Null", "null", "(null)", "<null>", "None", "NaN", "nan", "NAN", "NaT", "<NA>", "N/A", "n/a",
               "#N/A", "\\N", "undefined")  # fmt: skip
_MARKS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " ", "\\x01": "\x01"}


def _delimiter(value: object) -> object:
    """A delimiter, also by name: some cannot be typed in a shell or in YAML."""
    value = _MARKS.get(value, value) if isinstance(value, str) else value
    if isinstance(value, str) and set(value) & {'"', "\n", "\r", "\\"}:
        raise ValueError(f"expected a delimiter without quotes, backslashes and line ends, found {value!r}")
    return value


def _encoding(value: str) -> str:
    try:
        known = codecs.lookup(value)
        "".encode(value)  # LookupError for a codec that is not a text encoding, such as base64
    except LookupError:
        raise ValueError(f"expected an encoding such as utf-8, latin-1, cp1252 or utf-16, found {value!r}") from None
    return known.name


Delimiter = Annotated[str, BeforeValidator(_delimiter), Field(min_length=1, max_length=8)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Quoting = Literal["auto", "double", "backslash", "none"]


class TableColumns(Section):
    """Columns of a generic CSV, Parquet or JSON-lines log: names, or positions from 0."""

    user: str | int = "user_id"
    """Column of the user id."""
    item: str | int = "item_id"
    """Column of the item id."""
    time: str | int | None = "timestamp"
    """Column of the time: numbers or dates (data.time_unit, data.time_format); None: rows are taken in file order."""
    order: str | int | None = "order"
    """Column with the position in the user's history, used if the log has no time column."""
    tie: str | int | None = None
    """Column of whole numbers, 0 or more, by which a user's interactions of equal time are ordered (a sequence number);
    None: as prepare.ties says. Times must be of whole seconds."""
    rating: str | int | None = "rating"
    """Column of the rating, for min_rating; it may be missing."""
    names: tuple[str, ...] = ()
    """All columns in order, for CSV, TSV or space-separated files without a header line."""


class ItemColumns(Section):
    """Columns of a generic table of item metadata; every column but the id becomes an attribute of that name."""

    item: str | int | None = None
    """Column of the item id, a name or a position from 0; None: as in data.columns."""
    names: tuple[str, ...] = ()
    """All columns in order, for files without a header line."""


class DataConfig(Section):
    """Where the logs are and how they are read (stage `ingest`)."""

    format: str = "table"
    """table (any table of user, item, time), amazon, yelp, synthetic (generated), or `module:function` of your own."""
    interactions: tuple[str, ...] = ()
    """Files or glob patterns of reviews or interactions, .gz or plain."""
    items: tuple[str, ...] = ()
    """Files or glob patterns of item metadata; empty: items have ids only."""
    columns: TableColumns = TableColumns()
    item_columns: ItemColumns = ItemColumns()
    delimiter: Delimiter | None = None
    """Delimiter of the interactions: a string such as "::", or comma, semicolon, tab, pipe, space; None:
    detected from the first lines."""
    quoting: Quoting = "auto"
    """How fields are quoted. double: "" inside is a quote; backslash: \\" inside is one; none: quotes are ordinary
    characters; auto: double, but in tab-separated files only in fields that need their quotes."""
    encoding: Encoding | None = None
    """Encoding of text files, e.g. latin-1. None: UTF-8, or UTF-16 with a byte order mark; other bytes in an id are
    refused. utf-8: rows with other bytes are dropped and counted."""
    header: bool | None = None
    """Whether the first line of delimited files names the columns; None: detected."""
    item_delimiter: Delimiter | None = None
    """Like delimiter, for the item metadata."""
    item_quoting: Quoting = "auto"
    """Like quoting, for the item metadata."""
    item_encoding: Encoding | None = None
    """Like encoding, for the item metadata."""
    item_header: bool | None = None
    """Like header, for the item metadata."""
    max_dropped: float = Field(0.5, ge=0, le=1)
    """Share of rows that may be dropped as unreadable (filters do not count); if there are more, ingest stops."""
    time_unit: Literal["s", "ms", "us", "ns", "days", "excel_days"] | None = None
    """Unit of numeric times: seconds (also milli-, micro- and nanoseconds) or days since 1970, or Excel's serial
    days; None: decided by each number's size, dates such as 20180920 and 20180920123456 included."""
    time_format: str | None = Field(None, pattern="%")
    """Format of the times in strptime's notation, e.g. "%d/%m/%Y %H:%M"; None: numbers, ISO dates and other common
    formats. Dates whose day and month are ambiguous are refused."""
    null_values: tuple[str, ...] = NULL_VALUES
    """Strings that stand for a missing user, item, time or rating, as databases and pandas write them.
    "NA" and "none" are not among them: they can be names."""
    start: date | None = None
    """First day kept (YYYY-MM-DD, UTC); None: all."""
    end: date | None = None
    """Last day kept (YYYY-MM-DD, UTC); None: all."""
    min_rating: float | None = None
    """Interactions with a lower rating are dropped; None: keep all, as the papers do (implicit feedback)."""
    damaged: Literal["error", "keep"] = "error"
    """A truncated gzip file: stop, or keep the rows before the damage."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Whether repeated rows of one (user, item, time) are kept; the papers keep repeat purchases."""
    synthetic_users: int = Field(2000, ge=1)
    """format=synthetic: number of users."""
    synthetic_items: int = Field(1000, ge=20)
    """format=synthetic: number of items."""
    synthetic_seed: int = 0
    """format=synthetic: random seed."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        return known_or_own(name, FORMATS)

    @field_validator("interactions", "items", "null_values", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if self.time_unit and self.time_format:
            raise ValueError(f"expected time_unit or time_format, found both ({self.time_unit}, {self.time_format})")
        if self.start and self.end and self.start > self.end:
            raise ValueError(f"start ({self.start}) must not be after end ({self.end})")
        return self
