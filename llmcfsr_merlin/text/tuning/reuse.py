"""Fine-tuning inside the stage `embed`: gathers items and training pairs, tunes, reuses an unchanged result."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmcfsr_merlin.config.embed_settings import EmbedConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import hash_json, sha256_file, write_json
from llmcfsr_merlin.runtime.watch import Watch
from llmcfsr_merlin.text.item_encoder import TUNED, EncoderRecipe, ItemEncoder
from llmcfsr_merlin.text.language_models import ModelSource
from llmcfsr_merlin.text.prompts import Attributes
from llmcfsr_merlin.text.shards import Shard, read_rows
from llmcfsr_merlin.text.tuning.lora import ADAPTER
from llmcfsr_merlin.text.tuning.pairs import Neighbours
from llmcfsr_merlin.text.tuning.tune import CHECKPOINT, holdout_positions, tune
from llmcfsr_merlin.text.workers import run_workers, worker_device

RECORD = "tune.json"
KEY = ".key"
_NOBODY = Watch()
HOLDOUT = "holdout.json"  # raw ids of the items that were not tuned on


def tune_stage(
    config: EmbedConfig,
    encoder: ItemEncoder,
    shards: Sequence[Shard],
    vocabulary_ids: Sequence[str],
    sequences_dir: Path | None,
    out: Path,
    previous: Path | None = None,
    watch: Watch = _NOBODY,
) -> dict:
    """Fine-tune the model of `encoder` on the items of `shards` into out/tuned and return the record for the manifest.

    sequences_dir: part-*.parquet of lists of encoded ids (whole histories); their validation and test items are never
    paired. previous: an earlier result, reused if settings, model, items and pairs are unchanged.
    watch: the tools that follow it.
    """
    items, codes = gather_items(encoder, shards, vocabulary_ids, config.tune.max_items)
    neighbours = None
    if config.tune.cooccurrence:
        if sequences_dir is None:
            raise InputError("embed.tune.cooccurrence: expected the sequences of the stage prepare, found none")
        neighbours = training_neighbours(sequences_dir, codes, len(vocabulary_ids))
    key = _key(config, encoder.recipe, items, neighbours)
    folder = out / TUNED
    for known in (folder, previous / TUNED if previous else folder):
        record = _record(known)
        if record.get("key") == key:
            if known != folder:
                copy = folder.with_name(f".{TUNED}")  # a folder with a record counts as complete
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(known, copy)
                shutil.rmtree(folder, ignore_errors=True)
                copy.rename(folder)
                record["reused"] = True
            return record
    if not (folder / KEY).is_file() or (folder / KEY).read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)  # a checkpoint with other settings or items
        folder.mkdir(parents=True)
        (folder / KEY).write_text(key)
    run_workers(_tune_worker, config.workers, config, encoder.recipe, encoder.source, items, neighbours, folder, watch)
    record = json.loads((folder / RECORD).read_text())
    weights = folder / (ADAPTER if (folder / ADAPTER).is_file() else "model.safetensors")
    held = codes[holdout_positions(items, config.tune.holdout, config.tune.seed)]
    record |= {"key": key, "sha256": sha256_file(weights)}
    write_json(folder / HOLDOUT, [vocabulary_ids[code - FIRST_ITEM] for code in held])
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    return record


def _record(folder: Path) -> dict:
    """The record of a finished tuning; empty if there is no readable one."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def gather_items(
    encoder: ItemEncoder, shards: Sequence[Shard], vocabulary_ids: Sequence[str], limit: int
) -> tuple[list[Attributes], np.ndarray]:
    """Attributes of at most `limit` items with text, evenly spread, and their encoded ids (n,) int64."""
    step = max(1, -(-int(sum(shard.keep.sum() for shard in shards)) // limit))
    code = {raw: row + FIRST_ITEM for row, raw in enumerate(vocabulary_ids)}
    items, codes, seen = [], [], 0
    for shard in shards:
        rows = read_rows(shard).to_pylist()
        chosen = [row for number, row in enumerate(rows, seen) if number % step == 0]
        seen += len(rows)
        for row, attributes in zip(chosen, encoder.attributes(chosen)):
            if attributes:
                items.append(attributes)
                codes.append(code[str(row[ITEM])])
    return items, np.array(codes, dtype=np.int64)


def training_neighbours(sequences_dir: Path, codes: np.ndarray, items: int) -> Neighbours:
    """Neighbours among these items in the training part of each sequence."""
    position = np.full(items + FIRST_ITEM, -1, dtype=np.int64)
    position[codes] = np.arange(len(codes))
    sequences = []
    for block in read_histories(sequences_dir):
        sequences += [position[sequence[:end]] for sequence, end in zip(block.sequences, block.train)]
    return Neighbours.of(sequences, len(codes))


def _tune_worker(
    rank: int,
    workers: int,
    config: EmbedConfig,
    recipe: EncoderRecipe,
    source: ModelSource,
    items: list[Attributes],
    neighbours: Neighbours | None,
    folder: Path,
    watch: Watch,
) -> None:
    device = worker_device(config.device, rank) if workers > 1 else config.device
    if config.tune.method == "full":
        recipe = replace(recipe, dtype="float32")  # bfloat16 weights lose small updates
    base = ItemEncoder(recipe, source, batch_size=config.batch_size, device=device)
    record = tune(base.encoder, items, base.prompter, config.tune, folder, neighbours, watch)
    if rank == 0:
        write_json(folder / RECORD, record)


def _key(config: EmbedConfig, recipe: EncoderRecipe, items: list[Attributes], neighbours: Neighbours | None) -> str:
    digest = hashlib.blake2b()
    for attributes in items:
        digest.update(repr(attributes).encode())
    if neighbours:
        digest.update(neighbours.starts.tobytes() + neighbours.items.tobytes())
    settings = config.tune.model_dump(exclude={"enabled", "micro_batch"})
    return hash_json({"settings": settings, "recipe": recipe.key, "items": digest.hexdigest()})
