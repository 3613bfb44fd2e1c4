"""The work of stage `embed`: items table in, vectors and encoder recipe out."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.embed_settings import EmbedConfig
from llmcfsr_merlin.dataset.item_vectors import vectors_array, vectors_column
from llmcfsr_merlin.dataset.names import HAS_TEXT, ITEM, LEXICAL, VECTOR, VECTORS
from llmcfsr_merlin.dataset.vector_checks import check_finite
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.progress import announced
from llmcfsr_merlin.runtime.watch import Watch
from llmcfsr_merlin.text.enrichment import Enricher
from llmcfsr_merlin.text.item_encoder import REDUCTION, TUNED, WORDS, EncoderRecipe, ItemEncoder
from llmcfsr_merlin.text.language_models import ModelSource, resolve
from llmcfsr_merlin.text.lexical import Lexical
from llmcfsr_merlin.text.prompts import Prompter
from llmcfsr_merlin.text.reduction import Reduction
from llmcfsr_merlin.text.shards import (
    ENCODED,
    SHARD_ROWS,
    Shard,
    VectorCache,
    encode_shards,
    plan_shards,
    read_counts,
    read_rows,
    shard_path,
)
from llmcfsr_merlin.text.tuning.reuse import tune_stage
from llmcfsr_merlin.text.workers import run_workers, worker_device

_log = logging.getLogger(__name__)

ENRICHED = "enriched"
_NOBODY = Watch()
FIT_ROWS = 200_000  # the reduction and the lexical vectors are fitted on at most this many rows, spread evenly


def embed_table(
    config: EmbedConfig,
    source: ModelSource,
    items_dir: Path,
    vocabulary_ids: Sequence[str],
    out: Path,
    previous: Path | None = None,
    sequences_dir: Path | None = None,
    watch: Watch = _NOBODY,
) -> dict:
    """Encode the items of a vocabulary into `out` and return the counts for the manifest.

    items_dir: part-*.parquet of item_id and attributes. vocabulary_ids: raw ids in order of their encoded ids; other
    items are not encoded, ids without metadata get the mean vector. previous: an earlier result, whose vectors (and
    tuned weights) are reused if recipe and prompt are unchanged. sequences_dir: for co-occurrence pairs in tuning.
    watch: the tools that follow the tuning. A killed call resumes when it is called again with the same `out`. Writes
    `vectors/`, `encoded/` (before the reduction), encoder.json, reduction.safetensors and, if asked for, `lexical/`
    with words.safetensors, `tuned/` (weights) and `enriched/` (attributes written by a model).
    """
    start = time.perf_counter()
    shards, counts, absent = plan_shards(items_dir, vocabulary_ids)
    recipe = make_recipe(config, source)
    if config.enrich.enabled:
        _take_over(previous, out, ENRICHED)
    record = None
    if config.tune.enabled:
        encoder = ItemEncoder(recipe, source, device=config.device, enricher=_enricher(config, recipe, out))
        record = tune_stage(config, encoder, shards, vocabulary_ids, sequences_dir, out, previous, watch)
        recipe = replace(recipe, tuned={"key": record["key"], "sha256": record["sha256"]})
    tuned_at = time.perf_counter()
    run_workers(_encode_worker, config.workers, config, recipe, source, shards, out, previous)
    encoding = time.perf_counter() - tuned_at
    counts |= read_counts(out / ENCODED)
    reduction = Reduction.fit(config.reduction, _sample(out / ENCODED, counts["items"]), config.dimension)
    recipe.save(out)
    reduction.save(out / REDUCTION)
    write_vectors(out, reduction, absent)
    encoder = ItemEncoder(recipe, source, device=config.device, enricher=_enricher(config, recipe, out))
    lexical = write_lexical(out, config.lexical, shards, encoder, absent)
    counts["without_text"] += counts["without_metadata"]
    counts["items"] += counts["without_metadata"]
    return counts | {
        "model": recipe.model,
        "template": recipe.template_id,
        "pooling": recipe.pooling,
        "reduction": reduction.method,
        "explained_variance": reduction.explained,
        "dimension": int(reduction.mean.shape[0] if reduction.matrix is None else reduction.matrix.shape[1]),
        "lexical_dimension": lexical,
        "recipe": recipe.key,
        "tuned": record,
        "enriched": recipe.enriched,
        "tune_seconds": round(tuned_at - start, 2),
        "encode_seconds": round(encoding, 2),
    }


def make_recipe(config: EmbedConfig, source: ModelSource) -> EncoderRecipe:
    """The settings that determine an item's vector, before tuning."""
    template = Prompter.of(config.template).template
    enriched = None
    if config.enrich.enabled:
        enriched = Enricher(config.enrich, resolve(config.enrich.model, config.enrich.revision), None).record()
    return EncoderRecipe(
        model=source.record(),
        template=template.name,
        template_id=template.id,
        instruction=config.instruction,
        popularity=config.popularity,
        pooling=config.pooling,
        max_tokens=config.max_tokens,
        dtype=config.dtype,
        quantisation=config.quantisation,
        enriched=enriched,
    )


def _encode_worker(
    rank: int,
    workers: int,
    config: EmbedConfig,
    recipe: EncoderRecipe,
    source: ModelSource,
    shards: Sequence[Shard],
    out: Path,
    previous: Path | None,
) -> None:
    device = worker_device(config.device, rank) if workers > 1 else config.device
    encoder = ItemEncoder(
        recipe,
        source,
        out / TUNED if recipe.tuned else None,
        batch_size=config.batch_size,
        batch_tokens=config.batch_tokens,
        device=device,
        enricher=_enricher(config, recipe, out),
    )
    cache = VectorCache(previous / ENCODED, recipe.key) if previous else None
    encode_shards(shards, encoder, out / ENCODED, cache, worker=rank, workers=workers)


def _enricher(config: EmbedConfig, recipe: EncoderRecipe, out: Path) -> Enricher | None:
    return Enricher.of(recipe.enriched, out / ENRICHED, config.device) if recipe.enriched else None


def _take_over(previous: Path | None, out: Path, name: str) -> None:
    if previous and (previous / name).is_dir():
        shutil.copytree(previous / name, out / name, dirs_exist_ok=True)


def write_vectors(out: Path, reduction: Reduction, absent: pa.Array) -> None:
    """Write `vectors/` from `encoded/`, shard by shard, and the mean vector for the ids of `absent`."""
    (out / VECTORS).mkdir(exist_ok=True)
    paths = sorted((out / ENCODED).glob("part-*.parquet"))
    for path in paths:
        table = pq.read_table(path, columns=[ITEM, VECTOR, HAS_TEXT])
        has_text = table[HAS_TEXT].to_numpy()
        vectors = reduction.finish(vectors_array(table[VECTOR]), has_text)
        check_finite(vectors, table[ITEM], f"reduction {reduction.method}")
        write_part(out / VECTORS / path.name, table[ITEM], vectors, has_text)
    for number, start in enumerate(range(0, len(absent), SHARD_ROWS), len(paths)):
        ids = absent[start : start + SHARD_ROWS]
        no_text = np.zeros(len(ids), dtype=bool)
        vectors = reduction.finish(np.zeros((len(ids), len(reduction.mean)), dtype=np.float32), no_text)
        write_part(out / VECTORS / f"part-{number:05d}.parquet", ids, vectors, no_text)


def write_lexical(out: Path, dimension: int, shards: Sequence[Shard], encoder: ItemEncoder, absent: pa.Array) -> int:
    """Fit the lexical vectors, store them as WORDS, and write `lexical/`, shard by shard; returns their dimension.

    Items without a known word, and the ids of `absent`, have zero rows: no similarity. Where `dimension` is 0,
    or the items share no words, nothing is written and 0 returned.
    """
    shutil.rmtree(out / LEXICAL, ignore_errors=True)  # from an interrupted call
    if not dimension:
        return 0
    _log.info("  lexical vectors ...")
    step = max(1, -(-sum(int(shard.keep.sum()) for shard in shards) // FIT_ROWS))
    sample = [prompt for shard in shards for prompt in encoder.prompts(read_rows(shard).to_pylist()[::step])]
    with announced("lexical vectors"):
        lexical = Lexical.fit(sample, dimension)
    if lexical is None:
        return 0
    lexical.save(out / WORDS)
    (out / LEXICAL).mkdir()
    for shard in shards:
        rows = read_rows(shard)
        vectors = lexical.encode(encoder.prompts(rows.to_pylist()))
        path = shard_path(out / LEXICAL, shard)
        write_part(path, rows[ITEM].cast(pa.string()), vectors, vectors.any(1))
    if len(absent):
        vectors = np.zeros((len(absent), lexical.vectors.shape[1]), np.float32)
        write_part(out / LEXICAL / f"part-{len(shards):05d}.parquet", absent, vectors, vectors.any(1))
    return lexical.vectors.shape[1]


def write_part(path: Path, ids: pa.Array | pa.ChunkedArray, vectors: np.ndarray, has_text: np.ndarray) -> None:
    """Write a part of `vectors/` or `lexical/`: raw ids, float32 [n, D] and bool [n]."""
    table = pa.table({ITEM: ids, VECTOR: vectors_column(vectors), HAS_TEXT: pa.array(has_text)})
    pq.write_table(table, path, use_dictionary=False, compression="none")


def _sample(encoded: Path, items: int) -> Iterator[np.ndarray]:
    step = max(1, -(-items // FIT_ROWS))
    found = False
    for path in sorted(encoded.glob("part-*.parquet")):
        table = pq.read_table(path, columns=[VECTOR, HAS_TEXT])
        vectors = vectors_array(table[VECTOR])[table[HAS_TEXT].to_numpy()][::step]
        found = found or len(vectors) > 0
        yield vectors
    if not found:
        raise InputError(
            "expected items with attributes, found no text at all: check data.items and embed.template, "
            "or use a model without semantic vectors (--model ids_only)"
        )
