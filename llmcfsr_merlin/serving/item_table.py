"""Items as people see them: ids, titles and counts of a served version, in a file that is memory-mapped.

It stands beside the bundle in the version's folder: `items.arrow` (Arrow IPC, uncompressed, rows sorted by the bytes of
the id) and `items.json` with its sha256, the bundle that it belongs to, the model's history rule and its retired items.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import (
    CODE,
    COUNT,
    FIRST_ITEM,
    ITEM,
    ITEMS,
    MASKED,
    MODEL_CONFIG,
    TITLE,
    TITLES,
    VOCABULARY,
)
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean
from llmcfsr_merlin.dataset.raw.fields.ids import clean_id
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import sha256_file, write_json
from llmcfsr_merlin.serving.bundle import Bundle

TABLE, SEAL = "items.arrow", "items.json"
LONGEST = 200  # characters of a title
_KNOWN = 50_000  # titles kept as they are answered


def title_table(trained: Path) -> pa.Table | None:
    """ITEM and TITLE, as they were read, of a trained model's items: those that it was sealed with, else those of its
    run; None if there are none."""
    trained = Path(trained)
    if (trained / TITLES).is_file():
        return pq.read_table(trained / TITLES)
    folder = trained.parent / "ingest" / ITEMS
    if any(folder.glob("*.parquet")) and TITLE in (items := ds.dataset(folder, format="parquet")).schema.names:
        return items.to_table(columns=[ITEM, TITLE])
    return None


def titles_of(trained: Path) -> dict[str, str]:
    """Raw id -> title, cleaned, of the items of title_table."""
    table = title_table(trained)
    if table is None:
        return {}
    pairs = zip(table[ITEM].to_pylist(), table[TITLE].to_pylist())
    return {raw: text for raw, title in pairs if (text := clean(title, LONGEST))}


def write_titles(folder: Path, titles: Mapping[str, str]) -> None:
    """Write the titles of a model that has no run with all its items; nothing if there are none."""
    if titles:
        pq.write_table(pa.table({ITEM: list(titles), TITLE: list(titles.values())}), folder / TITLES)


def write_items(folder: Path, bundle: Bundle) -> None:
    """Write the table of a bundle's items, titled where the run has titles, into `folder`."""
    vocabulary, titles = Vocabulary.load(bundle.directory / VOCABULARY), titles_of(bundle.directory)
    ids = vocabulary.ids.tolist()
    retired = json.loads((bundle.directory / MODEL_CONFIG).read_text()).get("retired", ())
    order = np.array(sorted(range(len(ids)), key=lambda place: ids[place].encode()))
    columns = {
        ITEM: pa.array([ids[place] for place in order], pa.large_string()),
        TITLE: pa.array([titles.get(ids[place]) for place in order], pa.large_string()),
        COUNT: pa.array(vocabulary.counts[FIRST_ITEM:][order], pa.int64()),
        CODE: pa.array(order + FIRST_ITEM, pa.int64()),
    }
    table = pa.table(columns).combine_chunks()
    with pa.OSFile(str(folder / TABLE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    sealed = {"bundle": bundle.hash, "sha256": sha256_file(folder / TABLE)}
    write_json(folder / SEAL, sealed | {"history_rule": bundle.history_rule, "retired": list(retired)})


class ItemTable:
    """The items of one version. Nothing is copied into memory but an order of int32 a item and the pages that are read.

    version: of the bundle, as answers name it. excludes_seen: as of Ensemble.
    """

    def __init__(self, folder: Path):
        """Raises InputError if the table is missing or was changed."""
        folder = Path(folder)
        if not (folder / SEAL).is_file():
            raise InputError(f"expected {folder / SEAL}, found none: export anew (`llmcfsr export --force`)")
        seal = json.loads((folder / SEAL).read_text())
        if not (folder / TABLE).is_file() or sha256_file(folder / TABLE) != seal["sha256"]:
            raise InputError(f"{folder / TABLE} was changed after it was written (sha256 differs): export anew")
        self.version = version_name(int(seal["bundle"][:15], 16))
        self.excludes_seen = seal.get("history_rule") == MASKED
        table = pa.ipc.open_file(pa.memory_map(str(folder / TABLE))).read_all()
        self._titles = table[TITLE]
        self._ids, self._names = _Column(table[ITEM].chunk(0)), _Column(table[TITLE].chunk(0))
        self._known: dict[str, str | None] = {}
        self._titled = table[TITLE].null_count < len(table)
        self._counts = table[COUNT].chunk(0).to_numpy()
        self._codes = table[CODE].chunk(0).to_numpy()
        self._total = max(int(self._counts.sum()), 1)
        self._stays = ~np.isin(self._codes, seal.get("retired", ()))
        order = np.lexsort((self._codes, -self._counts)).astype(np.int32)
        self._popular = order[self._stays[order]]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def titled(self) -> bool:
        return self._titled

    def find(self, raw: str) -> int | None:
        """The place of an item, whose id is cleaned as those of a log; None for one that is unknown."""
        place = self._place(raw)
        if place is None and (cleaned := clean_id(raw)) is not None and cleaned != raw:
            place = self._place(cleaned)
        return place

    def title(self, raw: str) -> str | None:
        if not self._titled:
            return None
        try:
            return self._known[raw]
        except KeyError:
            place = self._place(raw)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[raw] = title = None if place is None else self._title(place)
            return title

    def item(self, place: int) -> dict:
        """id, title (None without one) and interactions of the item at a place."""
        return {"id": self._ids[place].decode(), "title": self._title(place), "interactions": int(self._counts[place])}

    def search(self, text: str, limit: int) -> list[dict]:
        """Items with `text` in the title, whatever its case, the most popular first; before all the item of that id."""
        found = pc.indices_nonzero(pc.fill_null(pc.match_substring(self._titles, text, ignore_case=True), False))
        places = np.asarray(found, dtype=np.int64)
        best = places[np.lexsort((self._codes[places], -self._counts[places]))][:limit].tolist()
        exact = self.find(text)
        if exact is not None:
            best = [exact, *(place for place in best if place != exact)][:limit]
        return [self.item(place) for place in best]

    def popular(
        self, k: int, without: Iterable[str] = (), only: Iterable[str] | None = None
    ) -> list[tuple[str, float]]:
        """The k items with most interactions, and their share of all, as the model gives them to an empty history: what
        is recommended while no server answers."""
        left_out = {self.find(raw) for raw in without}
        found: list[tuple[str, float]] = []
        for place in self._ordered(only):
            if len(found) == k:
                break
            if place not in left_out:
                share = np.float32(self._counts[place] / self._total)
                found.append((self._ids[place].decode(), float(share)))
        return found

    def _ordered(self, only: Iterable[str] | None) -> Iterator[int]:
        if only is None:
            return (int(place) for place in self._popular)
        places = {place for raw in only if (place := self.find(raw)) is not None and self._stays[place]}
        return iter(sorted(places, key=lambda place: (-self._counts[place], self._codes[place])))

    def _place(self, raw: str) -> int | None:
        wanted = raw.encode("utf-8", "replace")
        place = bisect_left(self._ids, wanted)
        return place if place < len(self._ids) and self._ids[place] == wanted else None

    def _title(self, place: int) -> str | None:
        return self._names[place].decode() or None


class _Column:
    """The texts of an Arrow column as bytes, read where they lie."""

    def __init__(self, column: pa.LargeStringArray):
        _, offsets, data = column.buffers()
        # Not by numpy, whose numbers cost three times as much one by one.
        self._offsets = memoryview(offsets).cast("q")[column.offset : column.offset + len(column) + 1]
        self._data = memoryview(data) if data is not None else memoryview(b"")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return bytes(self._data[self._offsets[place] : self._offsets[place + 1]])


def version_name(tag: int) -> str:
    """What answers call a version: the first 60 bits of the bundle's hash in hexadecimal."""
    return f"{tag:015x}"
