"""Raw item ids in, raw item ids and scores out: the library's main entry point, also called by the Triton steps."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, ITEMS, MODEL_CONFIG, MODEL_WEIGHTS, OOV, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import CHECKSUMS, remove
from llmcfsr_merlin.runtime.hub import model_folder
from llmcfsr_merlin.runtime.layout import CARD
from llmcfsr_merlin.runtime.manifest import MANIFEST, Manifest, hash_json, seal
from llmcfsr_merlin.scoring.checkpoint import describe, load_model, save_model
from llmcfsr_merlin.scoring.ranker import Ranker, pad
from llmcfsr_merlin.scoring.search.bound_tables import hash_tables, take_tables

_log = logging.getLogger(__name__)
_MODEL = (VOCABULARY, MODEL_CONFIG, MODEL_WEIGHTS)
_ROWS = 512  # histories scored together: memory holds one score per item for each


@dataclass(frozen=True)
class Encoded:
    """Encoded histories. item_ids: int64 [B, L] right-padded; unknown, fallback: [B]; seen: each row's full history."""

    item_ids: Tensor
    unknown: np.ndarray
    fallback: np.ndarray
    seen: list[list[int]]


@dataclass(frozen=True)
class Reason:
    """Why an item was recommended. shares: what each feature of the score added to it, by name, summing to the score;
    match: the raw id of the history's other item that the recommended one is most like. Both empty if nothing of the
    history was known; match is None if no scorer of the model compares items, or the history has no other item."""

    shares: dict[str, float]
    match: str | None


@dataclass(frozen=True)
class Recommendations:
    """Row i belongs to history i. items: object [B, K] raw ids, None past the last; scores: float32 [B, K], NaN there.

    unknown: int64 [B], number of ids that the model does not know. fallback: bool [B], true where no id of the
    history is known and the most popular items are returned (score: share of all interactions). exact: bool [B], false
    if a shortlist could not prove that no other item is better.
    """

    items: np.ndarray
    scores: np.ndarray
    unknown: np.ndarray
    fallback: np.ndarray
    exact: np.ndarray


class Encoder:
    """Encodes raw item ids for the ranker: needs the vocabulary, not the weights."""

    def __init__(self, vocabulary: Vocabulary, max_length: int):
        self.vocabulary, self.max_length = vocabulary, max_length

    def encode(self, histories: Sequence[Sequence]) -> Encoded:
        """Encode raw histories (oldest item first); unknown ids are dropped and counted."""
        seen, unknown = [], np.zeros(len(histories), np.int64)
        for row, history in enumerate(histories):
            item_ids = self.vocabulary.encode(history)
            unknown[row] = item_ids.count(OOV)
            seen.append([item_id for item_id in item_ids if item_id >= FIRST_ITEM])
        fallback = np.array([not item_ids for item_ids in seen], dtype=bool)
        return Encoded(pad(seen, self.max_length), unknown, fallback, seen)

    def known(self, raw_ids: Sequence) -> list[int]:
        """Encoded ids of the raw ids that the model knows; the others are dropped."""
        return [item_id for item_id in self.vocabulary.encode(raw_ids) if item_id >= FIRST_ITEM]


class Recommender:
    """Recommendations of a trained run.

    >>> recommender = Recommender.load("runs/demo")              # doctest: +SKIP
    >>> recommender.recommend([["B00A", "B00B"]], k=10)          # doctest: +SKIP
    """

    def __init__(self, ranker: Ranker, vocabulary: Vocabulary, card: str | None = None):
        """card: the model card that `save` writes; None: none."""
        if ranker.n_items != len(vocabulary):
            raise InputError(
                f"expected a model of {len(vocabulary)} items for this vocabulary, found {ranker.n_items}: "
                "run `llmcfsr train --force`"
            )
        self.ranker, self.vocabulary, self.card = ranker, vocabulary, card
        self.encoder = Encoder(vocabulary, ranker.max_length)
        share = vocabulary.counts / max(vocabulary.counts.sum(), 1)
        self.popularity = torch.tensor(share, dtype=torch.float32)  # the scores of an empty history
        self.popularity[:FIRST_ITEM] = -torch.inf
        self.popularity[ranker.model.retired.cpu()] = -torch.inf
        self.popularity = self.popularity.to(ranker.device)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        bulk: bool = False,
        shortlist: int = 0,
        allow: Iterable[str] = (),
        revision: str | None = None,
        uncertain: str = "answer",
        shard: tuple[int, int] | None = None,
    ) -> "Recommender":
        """Read a run directory, any folder that holds a sealed model, or a model of the Hugging Face Hub (`org/name`).

        A folder of that name comes first; else the model's own files are fetched, once, into the Hub's cache.
        revision: of the Hub, a branch, tag or commit. Vocabulary, description and weights are checked against the
        manifest before they are read; InputError says what is missing or changed. bulk, shortlist, uncertain, shard: as
        in Ranker. allow: names `module:Class` from outside this package that the model may import.
        """
        directory = model_folder(path, (*_MODEL, MANIFEST, CARD), revision)
        if (directory / "train").is_dir():
            directory = directory / "train"
        tables = shortlist > 0 and shard is None
        with ThreadPoolExecutor(1) as beside:  # hashing gigabytes, twice, is most of a large model's loading
            hashed = beside.submit(hash_tables, directory) if tables else None
            Manifest.load(directory).verify(directory, _MODEL)
            vocabulary = Vocabulary.load(directory / VOCABULARY)
            card = (directory / CARD).read_text(encoding="utf-8") if (directory / CARD).is_file() else None
            model = load_model(directory, vocabulary.hash, device, allow)
            if hashed is not None:
                take_tables(model, directory, hashed.result(), by_row=uncertain == "answer")
        return cls(Ranker(model, bulk, shortlist, uncertain, shard), vocabulary, card)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        model: str | Path | None = None,
        *,
        config: Config | None = None,
        report: Callable[[str], None] = _log.info,
    ) -> "Recommender":
        """Fit a model on a dataset: its scorers and their score weights.

        model: a model preset (llm_cfsr, sasrec, item_knn, ease, ...) or a YAML file; None: the model of the
        settings. config: None: the dataset's own settings. A model that reads item vectors encodes the items'
        attributes first if the dataset has no vectors yet. Raises InputError for inconsistent settings.
        """
        # Imported here: a server needs neither a trainer nor a text encoder.
        from llmcfsr_merlin.training.fit import counts_of, fit_model
        from llmcfsr_merlin.training.model_card import card_text

        config = dataset.config if config is None else config
        if model is not None:
            config = config.with_model(model)
        if config.train.align_to:
            raise InputError("train.align_to needs another trained model: use the stages (`llmcfsr train`)")
        if config.model.reads and dataset.embedded is None:
            dataset = _embedded(dataset, config)
        with tempfile.TemporaryDirectory(prefix="llmcfsr-") as work:
            fitted, history = fit_model(
                config.model, config.train, dataset, Path(work), exclude_history=config.evaluate.exclude_history,
                tail_item=config.evaluate.tail_item, report=report,
            )  # fmt: skip
        described = describe(fitted, dataset.vocabulary.hash)
        card = card_text(config, described, dataset.prepared.parent, counts_of(fitted), history)
        return cls(Ranker(fitted, shortlist=config.serve.shortlist), dataset.vocabulary, card)

    def save(self, folder: str | Path) -> None:
        """Write the model and its card into a new folder that `load` reads and `serving.repository.export` serves.

        It holds safetensors, JSON, Parquet and a README.md, and can be uploaded to the Hugging Face Hub as it is.
        """
        folder = Path(folder)
        if folder.exists():
            raise InputError(f"expected no folder at {folder}, found one: name a new one")
        partial = folder.with_name(f".{folder.name}.partial")
        remove(partial)
        partial.mkdir(parents=True)
        self.vocabulary.save(partial / VOCABULARY)
        save_model(self.ranker.model, partial, self.vocabulary.hash)
        if self.card is not None:
            (partial / CARD).write_text(self.card, encoding="utf-8")
        key = hash_json({"model": self.ranker.model.config.model_dump(), "vocabulary": self.vocabulary.hash})
        seal(partial, "train", key, {"model": self.ranker.model.config.name, "weights": self.ranker.model.weights})
        (partial / CHECKSUMS).unlink()  # times and inodes of this machine
        partial.rename(folder)

    def encode(self, histories: Sequence[Sequence]) -> Encoded:
        """Encode raw histories (oldest item first); unknown ids are dropped and counted."""
        return self.encoder.encode(histories)

    @torch.inference_mode()
    def rank(self, encoded: Encoded, k: int, blocked: Tensor | None = None) -> tuple[np.ndarray, ...]:
        """Encoded ids int64 [B, k'] and scores float32 [B, k'], best first, k' = min(k, items); 0 if no item is
        left; and bool [B], whether they are proven to be the best of all items."""
        item_ids, scores, exact = self.ranker.find(encoded.item_ids, k, blocked)
        if encoded.fallback.any():
            rows = torch.from_numpy(encoded.fallback.nonzero()[0]).to(item_ids.device)
            popularity = self.popularity[self.ranker.span or slice(None)].expand(len(rows), -1)
            some = None if blocked is None else blocked[rows]
            item_ids[rows], scores[rows] = self.ranker.best(popularity, item_ids.shape[1], some)
            exact[rows] = True
        return item_ids.cpu().numpy(), scores.cpu().numpy(), exact.cpu().numpy()

    def blocked(
        self,
        encoded: Encoded,
        exclude_seen: Sequence[bool],
        allow: Sequence[Sequence | None],
        deny: Sequence[Sequence | None],
    ) -> Tensor | None:
        """Bool [B, V] of the items each row must not get; None if nothing is blocked. Unknown ids are ignored."""
        if not any(exclude_seen) and not any(one is not None for one in (*allow, *deny)):
            return None
        known = self.encoder.known
        allowed = [None if one is None else known(one) for one in allow]
        denied = [[] if one is None else known(one) for one in deny]
        return self.ranker.blocked(
            allowed, [ids + (seen if out else []) for ids, seen, out in zip(denied, encoded.seen, exclude_seen)]
        )

    def answer(
        self,
        histories: Sequence[Sequence],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        allow: Sequence | None = None,
        deny: Sequence | None = None,
    ) -> Recommendations:
        """The top-k items per history as arrays; `allow` and `deny` are raw ids and apply to every row.

        exclude_seen: leave the items of a history out of its answer; None: as the model was trained
        (evaluate.exclude_history). It is a filter: the score weights stay those that the model was trained for.
        Raises InputError if a string is given instead of a list of ids: one history is [["a", "b"]].
        """
        histories, allow, deny = check_question(histories, k, allow, deny)
        if exclude_seen is None:
            exclude_seen = self.ranker.model.excludes_seen
        if not histories:
            return no_recommendations(k)
        parts = [
            self._answer(histories[start : start + _ROWS], k, exclude_seen, allow, deny)
            for start in range(0, len(histories), _ROWS)
        ]
        return Recommendations(*map(np.concatenate, zip(*(vars(part).values() for part in parts))))

    def _answer(
        self,
        histories: Sequence[Sequence],
        k: int,
        exclude_seen: bool,
        allow: Sequence | None,
        deny: Sequence | None,
    ) -> Recommendations:
        encoded = self.encode(histories)
        rows = len(histories)
        item_ids, scores, exact = self.rank(
            encoded, k, self.blocked(encoded, [exclude_seen] * rows, [allow] * rows, [deny] * rows)
        )
        scores = np.where(item_ids >= FIRST_ITEM, scores, np.nan).astype(np.float32)
        return Recommendations(self.vocabulary.decode(item_ids), scores, encoded.unknown, encoded.fallback, exact)

    @torch.inference_mode()
    def reasons(self, encoded: Encoded, items: np.ndarray) -> list[list[Reason | None]]:
        """A reason for each of items, encoded ids int64 [B, k] as `rank` gives them; None if none is left."""
        model, device = self.ranker.model, self.ranker.device
        histories, asked = encoded.item_ids.to(device), torch.from_numpy(items).to(device)
        shares = {name: share.float().cpu().numpy() for name, share in model.explain(histories, asked).items()}
        match = model.match(histories, asked)
        matched = self.vocabulary.decode(np.zeros_like(items) if match is None else match.cpu().numpy())
        none = Reason({}, None)
        return [
            [
                None if item_id < FIRST_ITEM else none if encoded.fallback[row]
                else Reason({name: float(share[row, place]) for name, share in shares.items()}, matched[row, place])
                for place, item_id in enumerate(item_ids)
            ]
            for row, item_ids in enumerate(items)
        ]  # fmt: skip

    def explain(self, history: Sequence, items: Sequence) -> list[Reason | None]:
        """Why each of `items` has its score for a history, raw ids both; None for one that is unknown or retired."""
        encoded = self.encode([history])
        item_ids = np.array([self.vocabulary.encode(items)], np.int64)
        item_ids[np.isin(item_ids, self.ranker.model.retired.cpu())] = 0
        return self.reasons(encoded, np.where(item_ids >= FIRST_ITEM, item_ids, 0))[0] if len(items) else []

    def recommend(self, histories: Sequence[Sequence], k: int = 10, **filters: Any) -> pd.DataFrame:
        """The top-k items per history as a table()."""
        return table(self.answer(histories, k, **filters))


def check_question(
    histories: Iterable, k: int, allow: Iterable | None = None, deny: Iterable | None = None
) -> tuple[list[list], list | None, list | None]:
    """The histories, allowed and denied ids as lists; InputError if they or k are not valid."""
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k < 2**31:
        raise InputError(f"expected k of at least 1, found {k!r}")
    if _single(histories):
        raise InputError(f"expected a list of histories, found {histories!r}: one history is [['a', 'b']]")
    histories = list(histories)
    for history in histories:
        if _single(history) or isinstance(history, (set, frozenset)):  # a set has no order
            raise InputError(
                f"expected each history to be a list of ids, found {history!r}: one history is [['a', 'b']]"
            )
    for name, ids in (("allow", allow), ("deny", deny)):
        if ids is not None and _single(ids):
            raise InputError(f"expected {name} to be a list of ids, found {ids!r}: write [{ids!r}]")
    allow, deny = (None if ids is None else list(ids) for ids in (allow, deny))
    if allow is not None and not allow:
        raise InputError("expected at least one id in allow, found none: leave it out to allow every item")
    return [list(history) for history in histories], allow, deny


def _single(value: object) -> bool:
    """Whether a value is not a list: iterating a string or a mapping would silently give the wrong ids."""
    return isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def no_recommendations(k: int) -> Recommendations:
    """The recommendations for an empty list of histories."""
    empty, none = np.empty((0, k)), np.zeros(0, bool)
    return Recommendations(empty.astype(object), empty.astype(np.float32), np.zeros(0, np.int64), none, none)


def table(found: Recommendations) -> pd.DataFrame:
    """One row per recommendation: history (its position), rank (from 1), item_id, score."""
    row, column = np.nonzero(found.items != None)  # noqa: E711 - elementwise
    return pd.DataFrame(
        {"history": row, "rank": column + 1, ITEM: found.items[row, column], "score": found.scores[row, column]}
    )


def _embedded(dataset: Dataset, config: Config) -> Dataset:
    """Run stage `embed`; returns the dataset with its vectors."""
    if dataset.run is None or not any((dataset.run / "ingest" / ITEMS).glob("*.parquet")):
        raise InputError(
            f"the model {config.model.name} reads item vectors: give the dataset items with attributes "
            "(Dataset.from_frames(interactions, items)), run `llmcfsr embed`, or choose a model of ids, e.g. sasrec"
        )
    from llmcfsr_merlin.text import embed_stage

    embed_stage.run(config, dataset.run)
    return dataset.reloaded()
