"""The data stages of an update: the day's log and new items on top of what yesterday's run has."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import FIRST_ITEM, INTERACTIONS, ITEM, ITEMS, LEXICAL, VECTORS, VOCABULARY
from llmcfsr_merlin.dataset.prepare.day import Day, last_seen, write_last_seen
from llmcfsr_merlin.dataset.raw.additions import read_items
from llmcfsr_merlin.dataset.raw.fields.ids import clean_id
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.engine import engine
from llmcfsr_merlin.runtime.files import CHECKSUMS, sha256_file
from llmcfsr_merlin.runtime.manifest import KEY, MANIFEST
from llmcfsr_merlin.runtime.stage import Manifest, run_stage
from llmcfsr_merlin.text.embed import write_part
from llmcfsr_merlin.text.item_encoder import encode_items, encode_words

_log = logging.getLogger(__name__)


def prepare(config: Config, previous: Path, run: Path, items: Path | None) -> Manifest:
    """Write run/prepare: the sequences of yesterday and the day's, split as for an update (dataset/prepare/day.py).

    items: a file of new items, known from now on whether the log has them or not.
    """
    from llmcfsr_merlin.dataset.prepare.extend import extend

    before = Manifest.load(previous / "prepare")
    before.check_format(previous / "prepare")
    log = run / "ingest" / INTERACTIONS

    def work(out: Path) -> dict:
        before.verify(previous / "prepare", remembered=True)
        offered = [] if items is None else [clean_id(row[ITEM]) or "" for row in read_items(items, config.data)]
        day = Day(config.update.held_out, before.key, config.update.min_item, list(dict.fromkeys(offered)))
        seen = last_seen(previous / "prepare", previous / "ingest" / INTERACTIONS)
        with engine(config.cluster) as chosen:
            counts = extend(previous / "prepare", log, out, config.prepare, chosen, day)
        write_last_seen(seen, log, out)
        return counts

    settings = {
        "max_length": config.prepare.max_length, "ties": config.prepare.ties, "previous": before.key,
        "held_out": config.update.held_out, "min_item": config.update.min_item,
        "items": None if items is None else sha256_file(items),
    }  # fmt: skip
    manifest, _ = run_stage(run, "prepare", settings, {"ingest": [INTERACTIONS]}, work, resumable=True)
    return manifest


def new_item_rows(config: Config, previous: Path, run: Path, items: Path | None) -> list[dict]:
    """The items that yesterday's run does not know, in order of their encoded ids: ITEM and the attributes that the
    file of new items, or else the metadata of the day's log, gives them."""
    old = Vocabulary.load(previous / "prepare" / VOCABULARY)
    ids = Vocabulary.load(run / "prepare" / VOCABULARY).ids[len(old.ids) :].tolist()
    if not ids:
        return []
    known = {clean_id(row[ITEM]): row for row in read_items(items, config.data)} if items is not None else {}
    if any((run / "ingest" / ITEMS).glob("*.parquet")):
        wanted = pc.field(ITEM).isin(pa.array(ids, pa.string()))
        table = ds.dataset(run / "ingest" / ITEMS, format="parquet").to_table(filter=wanted)
        rows = ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())
        known = {row[ITEM]: row for row in rows} | known
    return [{**known.get(raw, {}), ITEM: raw} for raw in ids]


def embed(config: Config, previous: Path, run: Path, items: Path | None) -> Manifest:
    """Write run/embed: yesterday's vectors, and those of the new items by the same encoder, reduction and words."""
    before = Manifest.load(previous / "embed")
    before.check_format(previous / "embed")

    def work(out: Path) -> dict:
        before.verify(previous / "embed", remembered=True)
        for path in sorted((previous / "embed").iterdir()):
            if path.name in (MANIFEST, CHECKSUMS, KEY) or path.name.startswith("."):
                continue
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, out / path.name)
        rows = new_item_rows(config, previous, run, items)
        if rows:
            _log.info("  encoding %d new items ...", len(rows))
            attributes = [{name: value for name, value in row.items() if name != ITEM} for row in rows]
            ids = [row[ITEM] for row in rows]
            vectors, has_text = encode_items(out, attributes, device=config.embed.device)
            _add(out / VECTORS, ids, vectors, has_text)
            if (words := encode_words(out, attributes, device=config.embed.device)) is not None:
                _add(out / LEXICAL, ids, words, words.any(1))
        return before.counts | {"items": before.counts.get("items", 0) + len(rows), "new_items": len(rows)}

    settings = {"previous": before.identity, "items": None if items is None else sha256_file(items)}
    inputs = {"ingest": [ITEMS], "prepare": [VOCABULARY]}
    manifest, _ = run_stage(run, "embed", settings, inputs, work)
    return manifest


def _add(folder: Path, ids: list[str], vectors: np.ndarray, has_text: np.ndarray) -> None:
    numbers = [int(path.stem.rpartition("-")[2]) for path in folder.glob("part-*.parquet")]
    write_part(folder / f"part-{max(numbers) + 1:05d}.parquet", ids, vectors, has_text)


def new_codes(previous: Path, run: Path) -> range:
    """The encoded ids of the items that are new on the day."""
    old, new = (pq.read_metadata(path / "prepare" / VOCABULARY).num_rows for path in (previous, run))
    return range(old + FIRST_ITEM, new + FIRST_ITEM)
