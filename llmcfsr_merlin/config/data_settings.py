"""Section `data`: where the logs are and how they are read (stage `ingest`)."""

import codecs
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from llmcfsr_merlin.config.section import Section, known_or_own

FORMATS = ("table", "amazon", "yelp", "synthetic")
NULL_VALUES = ("NULL", "Null", "null", "(null)", "<null>", "None", "NaN", "nan", "NAN", "NaT", "<NA>", "N/A", "n/a",
               "#N/A", "\\N", "undefined")  # fmt: skip
_MARKS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " ", "\\x01": "\x01"}


def _delimiter(value: object) -> object:
    """A delimiter by its name: some cannot be typed in a shell or in YAML."""
    value = _MARKS.get(value, value) if isinstance(value, str) else value
    if isinstance(value, str) and set(value) & {'"', "\n", "\r", "\\"}:
        raise ValueError(f"expected a delimiter without quotes, backslashes and line ends, found {value!r}")
    return value


def _encoding(value: str) -> str:
    try:
        known = codecs.lookup(value)
        "".encode(value)  # LookupError for a codec that is no text encoding, such as base64
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
    """Numbers or dates (data.time_unit, data.time_format); None: rows are taken in file order."""
    order: str | int | None = "order"
    """Position in the user's order, used if the log has no time column."""
    rating: str | int | None = "rating"
    """Stars or the like, for min_rating; a log without the column is read too."""
    names: tuple[str, ...] = ()
    """All columns in order, for CSV, TSV or space-separated files without a header line."""


class ItemColumns(Section):
    """Columns of a generic table of item metadata; those that are not the id are attributes of their own name."""

    item: str | int | None = None
    """The item id, a name or a position from 0; None: as in data.columns."""
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
    """Between the columns of delimited interactions: a text such as "::", or comma, semicolon, tab, pipe, space; None:
    found from the first lines."""
    quoting: Quoting = "auto"
    """Fields in double quotes. double: "" inside is a quote; backslash: \\" inside is one; none: quotes are characters
    like others; auto: double, but in tab-separated files only where a field needs its quotes."""
    encoding: Encoding | None = None
    """Of text files, e.g. latin-1. None: UTF-8, or UTF-16 that says so; other bytes in an id are refused. utf-8: rows
    with other bytes are dropped and counted."""
    header: bool | None = None
    """Whether the first line of delimited files names the columns; None: found from it."""
    item_delimiter: Delimiter | None = None
    """As delimiter, of the item metadata."""
    item_quoting: Quoting = "auto"
    """As quoting, of the item metadata."""
    item_encoding: Encoding | None = None
    """As encoding, of the item metadata."""
    item_header: bool | None = None
    """As header, of the item metadata."""
    max_dropped: float = Field(0.5, ge=0, le=1)
    """Share of the rows that may be dropped because they cannot be read (filters do not count): more is refused."""
    time_unit: Literal["s", "ms", "us", "ns", "days", "excel_days"] | None = None
    """Of times that are numbers: seconds (also milli-, micro- and nanoseconds) or days since 1970, or Excel's serial
    days; None: seconds and their parts by each number's size, and dates such as 20180920 and 20180920123456."""
    time_format: str | None = Field(None, pattern="%")
    """How times are written, in strptime's letters, e.g. "%d/%m/%Y %H:%M"; None: numbers, ISO dates and other common
    notations. Dates of which day and month cannot be told apart are refused."""
    null_values: tuple[str, ...] = NULL_VALUES
    """Texts that mean that there is no value, as databases and pandas write it, for users, items, times and ratings.
    "NA" and "none" are none of them: they are names too."""
    start: date | None = None
    """First day kept (YYYY-MM-DD, UTC), None: all."""
    end: date | None = None
    """Last day kept (YYYY-MM-DD, UTC), None: all."""
    min_rating: float | None = None
    """Interactions rated below are dropped; None keeps all, as the papers do (implicit feedback)."""
    damaged: Literal["error", "keep"] = "error"
    """A truncated gzip: stop, or keep the rows before the damage."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Repeated rows of one (user, item, time): repeat purchases are kept by the papers."""
    synthetic_users: int = Field(2000, ge=1)
    """format=synthetic: users generated."""
    synthetic_items: int = Field(1000, ge=20)
    """format=synthetic: items generated."""
    synthetic_seed: int = 0
    """format=synthetic: another seed is another log."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        return known_or_own(name, FORMATS)

    @field_validator("interactions", "items", "null_values", mode="before")
    @classmethod
    def _one_path(cls, value):
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self):
        if self.time_unit and self.time_format:
            raise ValueError(f"expected time_unit or time_format, found both ({self.time_unit}, {self.time_format})")
        if self.start and self.end and self.start > self.end:
            raise ValueError(f"start ({self.start}) must not be after end ({self.end})")
        return self
