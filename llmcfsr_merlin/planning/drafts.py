"""A recipe drafted from a log and a table of items: what is decided from the files, each with its reason, as YAML.

What the files do not decide stands as a commented choice.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.config.layers import override
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.raw.files.source import find_files
from llmcfsr_merlin.planning.advice import advise
from llmcfsr_merlin.planning.column_guesses import (
    Guess,
    guess_columns,
    guess_format,
    guess_item_column,
    read_times,
    said_values,
)
from llmcfsr_merlin.planning.file_heads import Head, is_number, read_head
from llmcfsr_merlin.planning.item_texts import ItemText, describe_items
from llmcfsr_merlin.planning.log_facts import Log, read_in
from llmcfsr_merlin.planning.yaml_lines import Lines
from llmcfsr_merlin.runtime.errors import InputError

_DEFAULTS = {"user": "user_id", "item": "item_id", "time": "timestamp", "rating": "rating", "order": "order"}


@dataclass
class Draft:
    """text: the recipe. decided: (what, how) in order; open: what is left to choose, a line each."""

    text: str
    decided: list[tuple[str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


def draft_recipe(name: str, log: str, items: str | None, given: Sequence[str] = ()) -> Draft:
    """Look at the files and draft the recipe `name`.

    log, items: a file, folder of Parquet or glob pattern each. given: `section.key=value` settings that are decided
    already (data.delimiter, data.time_format, data.columns.user, ...); they stand in the recipe. Raises InputError for
    files that cannot be read.
    """
    decided: dict = {}
    for one in given:
        decided |= override(one)
    files: dict = {"data.interactions": [log]} | ({"data.items": [items]} if items else {})
    return _Drafting(name, Config.load().with_settings(files | decided), decided).draft()


class _Drafting:
    def __init__(self, name: str, base: Config, given: dict):
        self.base, self.given = base, given
        self.lines, self.result = Lines(), Draft("")
        self.lines.comment(
            "Drafted by `llmcfsr init` from the files named below: what it decided, each with the reason. All "
            "settings: `llmcfsr config --explain`. Next: `llmcfsr check` this file, then `llmcfsr run` it."
        )
        self.lines.put("name", name)

    def draft(self) -> Draft:
        files = find_files(self.base.data.interactions, "data.interactions")
        head = read_head(files[0], self.base.data)
        chosen = self._data(head)
        with ExitStack() as open_files:
            log, counts = self._read(chosen, open_files)
            if log is not None:
                sizes = [f"{counts[what]:,} {what}" for what in ("interactions", "users", "items")]
                self._decided("log", ", ".join(sizes))
            advise(self.lines, log, counts, self._items(log, chosen), self._decided)
        if self.given:
            self.lines.blank()
            self.lines.comment("As given by --set; these win over what stands above.")
            for key, value in self.given.items():
                self.lines.put(key, value, null=True)
        self.result.text = self.lines.text
        return self.result

    def _decided(self, what: str, how: str) -> None:
        self.result.decided.append((what, how))

    def _data(self, head: Head) -> DataConfig | None:
        """Write the section `data`; its settings, None if the columns are not decided."""
        lines = self.lines
        lines.section("data")
        name, why = guess_format(head)
        name = self.given.get("data.format", name)
        lines.put("format", name, f"{why}; {head.source.kind} file{', gzip' if head.source.gzip else ''}", 1)
        self._decided("format", name)
        lines.put("interactions", list(self.base.data.interactions), indent=1)
        if self.base.data.items:
            lines.put("items", list(self.base.data.items), indent=1)
        data = {"data.format": name}
        if name == "table":
            columns = self._columns(head)
            if columns is None:
                return None
            data["data.columns"] = columns
        else:
            self._decided("columns", why)
        return self.base.with_settings(data).data

    def _columns(self, head: Head) -> dict | None:
        """The mapping data.columns; None if user or item is not decided."""
        lines, guesses = self.lines, guess_columns(head)
        lines.put("columns", None, indent=1)
        found: dict = {}
        if head.headless:
            found["names"] = [
                next((_DEFAULTS[role] for role, guess in guesses.items() if guess.column == name), name)
                for name in head.columns
            ]
            lines.put("names", found["names"], "the file has no header line: names for its columns, in order", 2)
        for role in _DEFAULTS:
            guess = guesses[role]
            asked = self._asked(role)
            if asked is not None:
                guess = Guess(str(asked), "as given")
            if guess.column is not None:
                found[role] = _DEFAULTS[role] if head.headless else guess.column
                if asked is not None:
                    found[role] = asked
                values = head.columns.get(guess.column)
                lines.put(role, found[role], f"{guess.why}; {said_values(values)}" if values else guess.why, 2)
                self._decided(role, f"column {guess.column}: {guess.why}")
            elif role in ("user", "item"):
                lines.comment(f"NOT DECIDED: which column is the {role}? Uncomment one:", 2)
                for name in guess.candidates or list(head.columns):
                    lines.off(role, name, said_values(head.columns[name]), 2)
                self.result.open.append(f"data.columns.{role}: {', '.join(guess.candidates or head.columns)}")
            elif role == "time" and guesses["order"].column is None:
                self._no_time(guess, head)
                found["time"] = None
        values = head.columns.get(guesses["time"].column or "")
        if values and not {"data.time_unit", "data.time_format"} & self.given.keys():
            self._time_unit(values)
        return found if {"user", "item"} <= found.keys() else None

    def _asked(self, role: str) -> str | int | None:
        whole = self.given.get("data.columns") or {}
        return self.given.get(f"data.columns.{role}", whole.get(role))

    def _time_unit(self, values: list) -> None:
        try:
            unit = read_times(values)[0].usual
        except InputError:  # ingest says what to do
            return
        if unit and all(value is None or value == "" or is_number(value) for value in values):
            self.lines.put("time_unit", unit, "the size of the numbers; they read as dates of our time", 1)

    def _no_time(self, guess: Guess, head: Head) -> None:
        if guess.candidates:
            self.lines.comment("NOT DECIDED: which column is the time? Uncomment one instead of `time: null`:", 2)
            for name in guess.candidates:
                self.lines.off("time", name, said_values(head.columns[name]), 2)
            self.result.open.append(f"data.columns.time: {', '.join(guess.candidates)}, or none")
        self.lines.put("time", None, "no column holds times: the rows are taken in the order of the file", 2, null=True)
        self._decided("time", "none: the order of the file")

    def _read(self, data: DataConfig | None, open_files: ExitStack) -> tuple[Log | None, dict]:
        if data is None:
            return None, {}
        try:
            log, counts, _ = open_files.enter_context(read_in(data.model_copy(update={"items": ()})))
            return log, counts
        except InputError as error:
            self.lines.comment(f"NOT DECIDED: the log cannot be read by these settings: {error}", 1)
            self.result.open.append(f"data: {error}")
            return None, {}

    def _items(self, log: Log | None, data: DataConfig | None) -> ItemText | None:
        """Write data.item_columns; what stage embed would make of the items, None without them."""
        paths = self.base.data.items
        if not paths:
            return None
        head = read_head(find_files(paths, "data.items")[0], self.base.data, items=True)
        if data is not None and data.format != "table":
            return describe_items(head, data.format, None)
        known = () if log is None else log.item_ids.to_pylist()
        column = None if data is None else str(data.columns.item)
        guess = guess_item_column(head, known, column)
        asked = self.given.get("data.item_columns.item")
        if asked is not None:
            guess = Guess(asked, "as given")
        if guess.column is None:
            self.lines.comment("NOT DECIDED: which column of the items is their id? Uncomment both lines:", 1)
            self.lines.off("item_columns", None, None, 1)
            for name in guess.candidates:
                self.lines.off("  item", name, said_values(head.columns[name]), 1)
            self.result.open.append(f"data.item_columns.item: {', '.join(guess.candidates)}")
            return None
        self.lines.put("item_columns", None, indent=1)
        self.lines.put("item", guess.column, guess.why, 2)
        self._decided("item id", f"column {guess.column} of the items: {guess.why}")
        return describe_items(head, "table", guess.column)
