"""New items beside a finished stage `embed`: encoded alone, with its recipe and reduction, and appended."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.item_vectors import match_ids, read_vectors, vectors_column
from llmcfsr_merlin.dataset.names import HAS_TEXT, ITEM, LEXICAL, VECTOR, VECTORS
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.stage import Manifest, seal
from llmcfsr_merlin.text.item_encoder import encode_items, encode_words


def append_items(directory: Path, rows: Sequence[Mapping[str, object]], *, device: str = "auto") -> Manifest:
    """Encode new items and append them to the vectors (and lexical ones) of the finished stage `embed` in `directory`.

    rows: item_id and attributes. The vectors that are there stay as they are. Raises InputError where an id is missing,
    repeated or has a vector already (a changed item is encoded again by rerunning the stage).
    """
    directory = Path(directory)
    with run_lock(directory.parent):
        return _append(directory, rows, device)


def _append(directory: Path, rows: Sequence[Mapping[str, object]], device: str) -> Manifest:
    manifest = Manifest.load(directory)
    ids = [str(row[ITEM]) for row in rows if row.get(ITEM) not in (None, "")]
    if len(ids) < len(rows) or len(set(ids)) < len(ids) or not ids:
        raise InputError(f"expected new items with different {ITEM}s, found {len(set(ids))} ids in {len(rows)} rows")
    new = pa.array(ids, type=pa.string())
    for known, *_ in read_vectors(directory / VECTORS):
        found = match_ids(known, new)
        if (found >= 0).any():
            raise InputError(
                f"item {ids[found.max()]} has a vector already: run `llmcfsr embed --force` to encode it again"
            )
    vectors, has_text = encode_items(directory, rows, device=device)
    name = f"part-added-{hashlib.blake2b(chr(0).join(ids).encode(), digest_size=8).hexdigest()}.parquet"
    if (words := encode_words(directory, rows, device=device)) is not None:
        _write(directory / LEXICAL / name, new, words, words.any(1))
    _write(directory / VECTORS / name, new, vectors, has_text)
    counts = manifest.counts | {
        "items": manifest.counts["items"] + len(ids),
        "without_text": manifest.counts["without_text"] + int((~has_text).sum()),
        "appended": manifest.counts.get("appended", 0) + len(ids),
    }
    return seal(directory, manifest.stage, manifest.key, counts, manifest.seconds, manifest.peak_memory_mb)


def _write(path: Path, ids: pa.Array, vectors: np.ndarray, has_text: np.ndarray) -> None:
    table = pa.table({ITEM: ids, VECTOR: vectors_column(vectors), HAS_TEXT: pa.array(has_text)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, use_dictionary=False, compression="none")
    temporary.replace(path)
