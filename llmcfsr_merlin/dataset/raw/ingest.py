"""The work of stage `ingest`: raw logs and metadata of any size -> part files of interactions and items.

One thread reads (and decompresses) the files in blocks of whole lines; all cores parse them; blocks are collected in
order, so the result does not depend on the number of workers. Memory holds a few blocks, and 8 bytes per user and item.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.names import INTERACTIONS, ITEMS, ROW
from llmcfsr_merlin.dataset.raw import formats
from llmcfsr_merlin.dataset.raw.block_tasks import Tasks
from llmcfsr_merlin.dataset.raw.duplicates import RowKeys, drop_rows
from llmcfsr_merlin.dataset.raw.fields.times import SETTING as TIME_FORMAT
from llmcfsr_merlin.dataset.raw.files.lines import BLOCK
from llmcfsr_merlin.dataset.raw.files.source import find_files, sniff
from llmcfsr_merlin.dataset.raw.in_order import Processes, in_order
from llmcfsr_merlin.dataset.raw.interactions import (
    DROPPED,
    FILTERED,
    NOTED,
    Distinct,
    PartWriter,
)
from llmcfsr_merlin.dataset.raw.metadata import ItemTable
from llmcfsr_merlin.dataset.raw.notices import warn
from llmcfsr_merlin.dataset.raw.tally import Tally, check_dropped
from llmcfsr_merlin.runtime.engine import print_counts
from llmcfsr_merlin.runtime.errors import InputError

_log = logging.getLogger(__name__)

_SMALL = 4 * BLOCK  # below this file size, starting processes costs more than it saves


def ingest(settings: DataConfig, out: Path, *, workers: int | None = None, block: int = BLOCK) -> dict:
    """Read the logs named in `settings` and write INTERACTIONS and ITEMS (dataset/names.py) into `out`.

    workers: threads and processes that parse; None: all cores. Returns the counts for the manifest. Raises InputError
    for files that are missing, damaged or of another format, and if no row is left.
    """
    workers = workers or _cores()
    out = Path(out)
    reader = formats.of(settings)
    run = _Run(settings, out, workers, block, reader)
    run.interactions()
    run.items()
    _print(run.counts, settings)
    warn(run.counts, run.unmatched)
    return {name: value for name, value in run.counts.items() if value is not None}


@dataclass
class _Run:
    settings: DataConfig
    out: Path
    workers: int
    block: int
    format: formats.Format
    counts: dict = field(default_factory=dict)
    catalogue: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    known: set = field(default_factory=set)
    """Drop reasons that have an example."""
    unmatched: tuple = ()
    """Example ids of metadata that are not in the log, and of log items without metadata."""

    def interactions(self) -> None:
        """Write the interactions, count what was dropped and remember the log's items."""
        tasks = Tasks(self.settings, self.format, self.block)
        writer = PartWriter(self.out / INTERACTIONS)
        users, items, dropped = Distinct(), Distinct(), Tally()
        example = ""
        with RowKeys(self.out / ".keys") as keys:
            with ThreadPoolExecutor(self.workers) as pool:
                blocks = tasks.of_interactions(dropped, self.known)
                for cleaned in in_order(pool if self.workers > 1 else None, blocks, self.workers):
                    writer.write(cleaned.table)
                    keys.add(cleaned.keys, cleaned.table[ROW].to_numpy())
                    users.add(cleaned.users)
                    items.add(cleaned.items)
                    self._take(dropped, cleaned.dropped, self.settings.encoding, "data.encoding")
                    example = example or cleaned.example
            writer.close()
            total = writer.total
            if not total:
                raise InputError(self._nothing(dropped, example))
            unread = tuple(name for name in DROPPED if name not in FILTERED)
            self._report(dropped, unread, ("stray_quotes",), dropped["rows_read"], "interactions")
            repeated = keys.repeated()
        if self.settings.duplicates == "drop" and len(repeated):
            drop_rows(self.out / INTERACTIONS, repeated)
            total -= len(repeated)
        self.catalogue = items.values
        self.counts |= {"rows_read": dropped["rows_read"]}
        self.counts |= {
            name: dropped[name] for name in (*DROPPED, *NOTED, "stray_quotes", "cut_by_damage", "damaged_files")
        }
        self.counts |= {
            "duplicates_dropped" if self.settings.duplicates == "drop" else "duplicates_kept": len(repeated),
            "interactions": total,
            "users": len(users.values),
            "items": len(self.catalogue),
        }

    def items(self) -> None:
        """Write the items of the log with their metadata."""
        table = ItemTable(self.out / ITEMS, self.catalogue, self.format.columns)
        tasks, counts = Tasks(self.settings, self.format, self.block), Tally()
        for path in find_files(self.settings.items, "data.items"):
            source = sniff(path, self.settings.item_encoding)
            read = self.format.item_reader(source)
            small = source.path.stat().st_size < (_SMALL // 4 if source.gzip else _SMALL)
            with Processes(1 if small else self.workers) as pool:
                for rows, found in in_order(pool, tasks.of_items(source, read, counts), self.workers):
                    table.add(rows)
                    self._take(counts, found, self.settings.item_encoding, "data.item_encoding")
        lost = (
            "metadata_bad_lines", "metadata_not_utf8", "metadata_repeated_header", "metadata_no_item",
            "metadata_nested_item",
        )  # fmt: skip
        read_rows = counts["metadata_read"] + sum(counts[name] for name in lost[:3])
        self._report(counts, lost, ("metadata_stray_quotes", "metadata_binary"), read_rows, "items")
        table.add_missing(self.out / INTERACTIONS)
        table.close()
        self.unmatched = table.unmatched
        self.counts |= {name: int(value) for name, value in sorted({**counts, **table.counts}.items())}

    def _take(self, counts: Tally, found: Tally, encoding: str | None, setting: str) -> None:
        """Add a block's drop counts; InputError for bytes that are not UTF-8, unless the settings allow them."""
        counts.take(found)
        self.known.update(found.examples)
        damaged = next((name for name in found if name.endswith("not_utf8") and found[name]), None)
        if damaged and encoding is None:
            raise InputError(
                f"expected UTF-8 text, found other bytes in {counts.examples[damaged]}: set {setting}=latin-1 (or "
                f"cp1252, ...), or {setting}=utf-8 to drop such rows"
            )

    def _report(self, counts: Tally, lost: tuple[str, ...], noted: tuple[str, ...], read: int, what: str) -> None:
        for level, line in check_dropped(counts, lost, noted, read, self.settings.max_dropped, what):
            _log.log(level, line)

    def _nothing(self, dropped: Tally, example: str) -> str:
        reasons = ", ".join(f"{dropped[name]:,} {name}" for name in DROPPED if dropped[name])
        what = f"; the first unreadable time is {example}" if example else ""
        if not example and dropped.examples:
            what = f"; the first is in {next(iter(dropped.examples.values()))}"
        check = "check data.columns and the filters"
        if dropped["unreadable_time"] * 2 > dropped["rows_read"]:
            check = f"set {TIME_FORMAT}, or check data.columns.time"
        elif dropped["nested_item"] * 2 > dropped["rows_read"]:
            check = "write a row for each entry of a list (pandas.DataFrame.explode), or check data.columns.item"
        return (
            f"{', '.join(self.settings.interactions)}: expected interactions, found none left of "
            f"{dropped['rows_read']:,} rows ({reasons or 'no rows'}){what}: {check}"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(counts: dict, settings: DataConfig) -> None:
    shown = [(name.replace("_", " "), value) for name, value in counts.items() if value or name in _ALWAYS]
    print_counts(f"ingest ({settings.format})", shown)


_ALWAYS = ("rows_read", "interactions", "users", "items", "items_without_metadata")
