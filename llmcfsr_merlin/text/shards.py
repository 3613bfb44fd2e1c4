"""Encoding at scale: Parquet to Parquet in shards, resumable, in any number of processes, cached by content hash.

A shard is a run of rows of one input file. Each is encoded to `encoded/part-<shard>.parquet` under a temporary name and
renamed, so that a killed run loses at most the current shard. Memory is one shard plus 40 bytes per item.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.item_vectors import match_ids, vectors_array, vectors_column
from llmcfsr_merlin.dataset.names import HAS_TEXT, ITEM, VECTOR
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import whole
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.text.item_encoder import ItemEncoder

ENCODED = "encoded"  # part-*.parquet of ITEM, VECTOR before the reduction, HAS_TEXT, CONTENT
CONTENT = "content"  # 16-byte hash of the prompt, null without text
SHARD_ROWS = 4096
_COUNTS = ("items", "without_text", "cached", "tokens", "cut")


@dataclass(frozen=True)
class Shard:
    """Rows start, start + 1, ... of one file that are to be encoded (`keep`: (rows,) bool)."""

    number: int
    file: Path
    start: int
    keep: np.ndarray


def plan_shards(
    items_dir: Path, vocabulary_ids: Sequence[str], rows: int = SHARD_ROWS
) -> tuple[list[Shard], dict, pa.Array]:
    """Cut the items table into shards of `rows` rows.

    Only ids of the vocabulary are kept, and the first row of each. Returns the shards, the counts of dropped rows,
    and the ids of the vocabulary that are missing in the table. Raises InputError if there is no items table.
    """
    files = sorted(Path(items_dir).glob("part-*.parquet"))
    if not files:
        raise InputError(
            f"expected item attributes in {items_dir}/part-*.parquet, found none: give data.items, "
            "or use a model without semantic vectors (--model ids_only)"
        )
    columns = [pq.read_table(file, columns=[ITEM])[ITEM].cast(pa.string()) for file in files]
    wanted = pa.array(vocabulary_ids, type=pa.string())
    codes = match_ids(
        pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=pa.string()), wanted
    )
    keep = np.zeros(len(codes), dtype=bool)
    known = np.flatnonzero(codes >= 0)
    _, first = np.unique(codes[known], return_index=True)
    keep[known[first]] = True
    shards: list[Shard] = []
    offset = 0
    for file, column in zip(files, columns):
        for start in range(0, len(column), rows):
            stop = min(start + rows, len(column))
            shards.append(Shard(len(shards), file, start, keep[offset + start : offset + stop]))
        offset += len(column)
    absent = np.ones(len(wanted), dtype=bool)
    absent[codes[known]] = False
    counts = {
        "rows": len(codes),
        "not_in_vocabulary": int((codes < 0).sum()),
        "repeated_rows": int(len(known) - keep.sum()),
        "without_metadata": int(absent.sum()),
    }
    return shards, counts, wanted.filter(pa.array(absent))


class VectorCache:
    """Vectors of an earlier run by content hash. Holds 24 bytes per item in memory; the vectors stay in their files."""

    def __init__(self, directory: Path, key: str):
        """directory: an `encoded` folder; shards that another recipe (key) made are ignored."""
        self._files: list[Path] = []
        hashes, places = [], []
        for path in sorted(Path(directory).glob("part-*.parquet")) if directory.is_dir() else ():
            try:
                file = pq.ParquetFile(path)
            except pa.ArrowInvalid:  # an unreadable file is not an error: its items are encoded again
                continue
            if (file.schema_arrow.metadata or {}).get(b"recipe") != key.encode():
                continue
            column = file.read(columns=[CONTENT])[CONTENT]
            rows = np.flatnonzero(column.is_valid().to_numpy())
            hashes.append(np.array(column.drop_null().to_pylist(), dtype="S16"))
            places.append((np.int64(len(self._files)) << 32) | rows)
            self._files.append(path)
        self._hashes = np.concatenate(hashes) if hashes else np.empty(0, dtype="S16")
        self._places = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
        order = np.argsort(self._hashes, kind="stable")
        self._hashes, self._places = self._hashes[order], self._places[order]
        self._open: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._hashes)

    def get(self, wanted: list[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors (D,) of those hashes that are known."""
        if not len(self) or not wanted:
            return {}
        keys = np.array(wanted, dtype="S16")
        at = np.minimum(np.searchsorted(self._hashes, keys), len(self) - 1)
        hits = np.flatnonzero(self._hashes[at] == keys)
        found = {}
        for place, hit in sorted(zip(self._places[at[hits]].tolist(), hits.tolist())):
            found[wanted[hit]] = self._vectors(place >> 32)[place & 0xFFFFFFFF]
        return found

    def _vectors(self, file: int) -> np.ndarray:
        if self._open is None or self._open[0] != file:
            self._open = (file, vectors_array(pq.read_table(self._files[file], columns=[VECTOR])[VECTOR]))
        return self._open[1]


def encode_shards(
    shards: Sequence[Shard],
    encoder: ItemEncoder,
    out: Path,
    cache: VectorCache | None = None,
    *,
    worker: int = 0,
    workers: int = 1,
) -> None:
    """Encode shards worker, worker + workers, ... into `out`; existing ones are skipped."""
    out.mkdir(parents=True, exist_ok=True)
    mine = [shard for shard in shards if shard.number % workers == worker]
    total = int(sum(shard.keep.sum() for shard in mine))
    with Progress(total, "encode", "items", shown=worker == 0) as bar:
        for shard in mine:
            path = shard_path(out, shard)
            done = bar.n
            if not _is_done(path, encoder.recipe.key):
                _encode_shard(shard, encoder, path, cache, bar.update)
            bar.update(done + int(shard.keep.sum()) - bar.n)  # cached, without text, or already encoded


def shard_path(out: Path, shard: Shard) -> Path:
    """Where a shard's vectors are written."""
    return out / f"part-{shard.number:05d}.parquet"


def _encode_shard(
    shard: Shard, encoder: ItemEncoder, path: Path, cache: VectorCache | None, progress: Callable[[int], object]
) -> None:
    rows = read_rows(shard)
    encoded = encoder.encode_rows(rows.to_pylist(), cache, progress)
    table = pa.table(
        {
            ITEM: rows[ITEM].cast(pa.string()),
            VECTOR: vectors_column(encoded.vectors),
            HAS_TEXT: pa.array(encoded.has_text),
            CONTENT: pa.array(encoded.content, type=pa.binary(16)),
        }
    )
    counts = (len(rows), int((~encoded.has_text).sum()), encoded.cached, encoded.tokens, encoded.cut)
    metadata = {"recipe": encoder.recipe.key, "counts": " ".join(map(str, counts))}
    with whole(path) as temporary:
        # Dictionary encoding does not help vectors: plain encoding is smaller and three times faster to write.
        pq.write_table(table.replace_schema_metadata(metadata), temporary, use_dictionary=False, compression="none")


def _is_done(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    try:
        return (pq.read_schema(path).metadata or {}).get(b"recipe") == key.encode()
    except pa.ArrowInvalid:  # incomplete: the machine crashed before the file was synced
        return False


def read_counts(out: Path) -> dict[str, int]:
    """Sums of the counts that the shards in `out` recorded."""
    sums = np.zeros(len(_COUNTS), dtype=np.int64)
    for path in sorted(out.glob("part-*.parquet")):
        sums += np.array(pq.read_schema(path).metadata[b"counts"].split(), dtype=np.int64)
    return dict(zip(_COUNTS, sums.tolist()))


def read_rows(shard: Shard) -> pa.Table:
    """The kept rows of a shard; only the row groups that hold them are read."""
    file = pq.ParquetFile(shard.file)
    stop, position, groups, skipped = shard.start + len(shard.keep), 0, [], None
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if position < stop and position + size > shard.start:
            skipped = position if skipped is None else skipped
            groups.append(group)
        position += size
    table = file.read_row_groups(groups) if groups else file.schema_arrow.empty_table()
    return table.slice(shard.start - (skipped or 0), len(shard.keep)).filter(pa.array(shard.keep))


def find_items(items_dir: Path, ids: Sequence[str]) -> list[dict]:
    """The rows of some items, in the requested order; InputError names missing ones."""
    wanted = pa.array(list(ids), type=pa.string())
    found: dict[str, dict] = {}
    for path in sorted(Path(items_dir).glob("part-*.parquet")):
        table = pq.read_table(path)
        for row in table.filter(pa.array(match_ids(table[ITEM].cast(pa.string()), wanted) >= 0)).to_pylist():
            found.setdefault(str(row[ITEM]), row)
    if missing := [raw for raw in ids if raw not in found]:
        raise InputError(f"expected items of {items_dir}, found no {', '.join(missing[:5])}: check the ids")
    return [found[raw] for raw in ids]
