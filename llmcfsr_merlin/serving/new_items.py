"""New items without retraining: appended to the catalogue and scored by their item vectors."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from llmcfsr_merlin.config.data_settings import NULL_VALUES
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, VOCABULARY
from llmcfsr_merlin.dataset.raw.fields.ids import NotAnId, clean_id
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import remove
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.manifest import KEY, MANIFEST, remake
from llmcfsr_merlin.runtime.ownership import claim
from llmcfsr_merlin.runtime.stage import Manifest, hash_json, seal
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.serving.bundle import Bundle

Encode = Callable[[list[dict]], np.ndarray | None]


def check_trained_on(trained: Path, embedded: Path) -> None:
    """InputError unless the model of stage train in `trained` was trained on the vectors of stage embed in `embedded`.

    Refitted word vectors have other axes: comparing new items with old ones would be meaningless.
    """
    inputs = Manifest.load(trained).inputs
    if inputs.get("embed") == Manifest.load(embedded).identity:
        return
    # From an earlier version, or embedded again with the same result: compare by value.
    dataset = Dataset(trained, embedded)
    model = load_model(trained, dataset.vocabulary.hash)
    for name, kept in model.vectors.named_buffers():
        if getattr(dataset.shape, name) != kept.shape[1] or not np.array_equal(dataset.vectors(name), kept.numpy()):
            raise InputError(
                f"expected in {embedded} the vectors that the model was trained on, found others: "
                f"{remake(trained, 'train')}"
            )


def add_items(
    trained: str | Path,
    output: str | Path,
    rows: Sequence[dict],
    encode: Encode,
    encode_words: Encode | None = None,
    null_values: Sequence[str] = NULL_VALUES,
) -> dict:
    """Write to `output` the model of `trained` with new items at the end of its catalogue; publish() then serves it.

    rows: one dictionary per item, ITEM its raw id (cleaned as those of a log), the rest its attributes. encode: the
    attributes of n items -> float32 [n, D], the same encoder and reduction as in training; encode_words: their lexical
    vectors float32 [n, E], if the model has them. null_values: strings that are no id, as in data.null_values. Encoded
    ids and scores of the old items do not change; a new item has no trained collaborative row, so it is scored by the
    semantic view and the content score alone. Returns counts. Raises InputError if ids or vectors do not fit.
    """
    bundle, output = Bundle.open(trained), Path(output)
    key = hash_json({"base": Manifest.load(bundle.directory).key, "bundle": bundle.hash, "added": list(rows)})
    with run_lock(output.parent):
        if output.exists():
            found = Manifest.load(output) if (output / MANIFEST).is_file() else None
            if found is not None and found.key == key and found.fault(output) is None:
                return found.counts  # from the same call, interrupted after this step
            raise InputError(f"expected no folder at {output}, found one: name a new one")
        partial = output.with_name(f".{output.name}.partial")
        claim(partial)
        remove(partial, KEY)
        partial.mkdir()
        (partial / KEY).touch()
        try:
            counts = _write(bundle, partial, rows, (encode, encode_words), null_values)
            seal(partial, "train", key, counts)
        except BaseException:
            remove(partial, KEY)
            raise
        (partial / KEY).unlink()
        partial.rename(output)
    return counts


def _write(
    bundle: Bundle,
    output: Path,
    rows: Sequence[dict],
    encoders: tuple[Encode, Encode | None],
    null_values: Sequence[str],
) -> dict:
    encode, encode_words = encoders
    old = Vocabulary.load(bundle.directory / VOCABULARY)
    model = load_model(bundle.directory, old.hash)
    ids = _new_ids(rows, old, null_values)
    attributes = [{k: v for k, v in row.items() if k != ITEM} for row in rows]
    lexical = model.shape.lexical
    if lexical is not None and encode_words is None:
        raise InputError("expected lexical vectors of the new items, as the model has them, found no encoder for them")
    new = NewItems(
        len(rows),
        None if model.shape.semantic is None else _checked(encode(attributes), (len(rows), model.shape.semantic)),
        None if lexical is None or encode_words is None else _checked(encode_words(attributes), (len(rows), lexical)),
    )
    model.append_items(new)
    none = np.zeros(len(ids), np.int64)
    counts = [np.concatenate([part[FIRST_ITEM:], none]) for part in (old.counts, old.train_counts)]
    vocabulary = Vocabulary([*old.ids.tolist(), *ids], *counts)
    vocabulary.save(output / VOCABULARY)
    save_model(model, output, vocabulary.hash)
    return {"items_before": len(old.ids), "items_added": len(ids), "items": len(vocabulary.ids)}


def _new_ids(rows: Sequence[dict], old: Vocabulary, null_values: Sequence[str]) -> list[str]:
    if not rows:
        raise InputError("expected at least one new item, found none")
    ids = []
    for number, row in enumerate(rows, 1):
        try:
            raw = clean_id(row.get(ITEM))
        except NotAnId as error:
            raise InputError(f"new item {number}: {error} in {ITEM}") from error
        if raw is None or raw in null_values:
            raise InputError(f"expected {ITEM} in every new item, found {row.get(ITEM)!r} in item {number}")
        ids.append(raw)
    known = [raw for raw in ids if old.encode([raw])[0] >= FIRST_ITEM]
    if known:
        raise InputError(f"expected new items, found {len(known)} that the model already has, first {known[0]!r}")
    if len(set(ids)) < len(ids):
        twice = next(raw for raw, count in Counter(ids).items() if count > 1)
        raise InputError(f"expected each new {ITEM} once, found {twice!r} repeated")
    return ids


def _checked(vectors: np.ndarray | None, wanted: tuple[int, int]) -> torch.Tensor:
    vectors = np.asarray(vectors, np.float32)
    if vectors.shape != wanted:
        raise InputError(
            f"expected vectors of shape {wanted} as in training, found {vectors.shape}: use the same encoder"
        )
    if not np.isfinite(vectors).all():
        raise InputError("expected finite vectors, found NaN or infinity")
    return torch.from_numpy(vectors)
