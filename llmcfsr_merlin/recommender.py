"""Raw item ids in, raw item ids and scores out: the library's face, and what the Triton steps call."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, ITEMS, MODEL_CONFIG, MODEL_WEIGHTS, OOV, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import remove
from llmcfsr_merlin.runtime.manifest import Manifest, hash_json, seal
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.ranker import Ranker, pad, select_top_k

_log = logging.getLogger(__name__)
_ROWS = 512  # histories scored together: memory holds that many rows of the catalogue


@dataclass(frozen=True)
class Encoded:
    """Histories as codes. codes: int64 [B, L] right-padded; unknown, fallback: [B]; seen: a row's whole history."""

    codes: Tensor
    unknown: np.ndarray
    fallback: np.ndarray
    seen: list[list[int]]


@dataclass(frozen=True)
class Answers:
    """Row i answers history i. items: object [B, K] raw ids, None past the last; scores: float32 [B, K], NaN there.

    unknown: int64 [B], ids of the history that the model does not know. fallback: bool [B], true where nothing of the
    history was known and the most popular items are returned (score: share of all interactions).
    """

    items: np.ndarray
    scores: np.ndarray
    unknown: np.ndarray
    fallback: np.ndarray


class Encoder:
    """Raw ids to what the ranker reads: needs the vocabulary, not the weights."""

    def __init__(self, vocabulary: Vocabulary, max_length: int):
        self.vocabulary, self.max_length = vocabulary, max_length

    def encode(self, histories: Sequence[Sequence]) -> Encoded:
        """Raw histories (oldest item first) to codes; unknown ids are left out and counted."""
        seen, unknown = [], np.zeros(len(histories), np.int64)
        for row, history in enumerate(histories):
            codes = self.vocabulary.encode(history)
            unknown[row] = codes.count(OOV)
            seen.append([code for code in codes if code >= FIRST_ITEM])
        fallback = np.array([not codes for codes in seen], dtype=bool)
        return Encoded(pad(seen, self.max_length), unknown, fallback, seen)

    def known(self, raw_ids: Sequence) -> list[int]:
        """Codes of the ids that the model knows; the others are left out."""
        return [code for code in self.vocabulary.encode(raw_ids) if code >= FIRST_ITEM]


class Recommender:
    """Recommendations of a trained run.

    >>> recommender = Recommender.load("runs/demo")              # doctest: +SKIP
    >>> recommender.recommend([["B00A", "B00B"]], k=10)          # doctest: +SKIP
    """

    def __init__(self, ranker: Ranker, vocabulary: Vocabulary):
        if ranker.n_items != len(vocabulary):
            raise InputError(
                f"expected a model of {len(vocabulary)} rows for this vocabulary, found {ranker.n_items}: "
                "run `llmcfsr train --force`"
            )
        self.ranker, self.vocabulary = ranker, vocabulary
        self.encoder = Encoder(vocabulary, ranker.max_length)
        share = vocabulary.counts / max(vocabulary.counts.sum(), 1)
        self.popularity = torch.tensor(share, dtype=torch.float32)  # what an empty history gets
        self.popularity[:FIRST_ITEM] = -torch.inf
        self.popularity = self.popularity.to(ranker.device)

    @classmethod
    def load(
        cls, path: str | Path, device: str = "cpu", bulk: bool = False, shortlist: int = 0, allow: Iterable[str] = ()
    ) -> "Recommender":
        """Read a run directory, or any folder that holds a sealed model (vocabulary, weights, manifest).

        Each of the three is checked against the manifest before it is read; InputError says what is missing or changed.
        bulk, shortlist: as in Ranker. allow: names `module:Class` from outside this package that the model may import.
        """
        directory = Path(path)
        if (directory / "train").is_dir():
            directory = directory / "train"
        Manifest.load(directory).verify(directory, (VOCABULARY, MODEL_CONFIG, MODEL_WEIGHTS))
        vocabulary = Vocabulary.load(directory / VOCABULARY)
        return cls(Ranker(load_model(directory, vocabulary.hash, device, allow), bulk, shortlist), vocabulary)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        model: str | Path | None = None,
        *,
        config: Config | None = None,
        report: Callable[[str], None] = _log.info,
    ) -> "Recommender":
        """Fit a model on a dataset: its scorers, and the weights of their features.

        model: the name of a preset (llm_cfsr, sasrec, item_knn, ease, ...) or a YAML file; None: the one of the
        settings. config: settings; None: those of the dataset. A model that reads item vectors encodes the items'
        attributes first, if the dataset has no vectors yet. Raises InputError for settings that do not fit.
        """
        # Not above: a server needs neither a trainer nor a text encoder.
        from llmcfsr_merlin.training.fit import fit_model

        config = dataset.config if config is None else config
        if model is not None:
            config = config.with_model(model)
        if config.train.align_to:
            raise InputError("train.align_to needs another trained model: use the stages (`llmcfsr train`)")
        if config.model.reads and dataset.embedded is None:
            dataset = _embedded(dataset, config)
        with tempfile.TemporaryDirectory(prefix="llmcfsr-") as work:
            fitted, _ = fit_model(
                config.model, config.train, dataset, Path(work), exclude_history=config.evaluate.exclude_history,
                tail_item=config.evaluate.tail_item, report=report,
            )  # fmt: skip
        return cls(Ranker(fitted, shortlist=config.serve.shortlist), dataset.vocabulary)

    def save(self, folder: str | Path) -> None:
        """Write the model into a new folder that `load` reads and `serving.repository.export` serves."""
        folder = Path(folder)
        if folder.exists():
            raise InputError(f"expected no folder at {folder}, found one: name a new one")
        partial = folder.with_name(f".{folder.name}.partial")
        remove(partial)
        partial.mkdir(parents=True)
        self.vocabulary.save(partial / VOCABULARY)
        save_model(self.ranker.model, partial, self.vocabulary.hash)
        key = hash_json({"model": self.ranker.model.config.model_dump(), "vocabulary": self.vocabulary.hash})
        seal(partial, "train", key, {"model": self.ranker.model.config.name, "weights": self.ranker.model.weights})
        partial.rename(folder)

    def encode(self, histories: Sequence[Sequence]) -> Encoded:
        """Raw histories (oldest item first), encoded; unknown ids are left out and counted."""
        return self.encoder.encode(histories)

    @torch.inference_mode()
    def rank(self, encoded: Encoded, k: int, blocked: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Codes int64 [B, k'] and scores float32 [B, k'], best first, k' = min(k, items); code 0 if none is left."""
        codes, scores = self.ranker.top_k(encoded.codes, k, blocked)
        if encoded.fallback.any():
            rows = torch.from_numpy(encoded.fallback.nonzero()[0]).to(codes.device)
            popularity = self.popularity.expand(len(rows), -1)
            if blocked is not None:
                popularity = popularity.masked_fill(blocked[rows], -torch.inf)
            codes[rows], scores[rows] = select_top_k(popularity, codes.shape[1])
        return codes.cpu().numpy(), scores.cpu().numpy()

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
            allowed, [codes + (seen if out else []) for codes, seen, out in zip(denied, encoded.seen, exclude_seen)]
        )

    def answer(
        self,
        histories: Sequence[Sequence],
        k: int = 10,
        *,
        exclude_seen: bool = False,
        allow: Sequence | None = None,
        deny: Sequence | None = None,
    ) -> Answers:
        """The best k items of each history as arrays; `allow` and `deny` are raw ids and hold for every row.

        Raises InputError if a text stands in the place of a list of ids: one history is [["a", "b"]].
        """
        histories, allow, deny = check_question(histories, k, allow, deny)
        if not histories:
            return no_answers(k)
        parts = [
            self._answer(histories[start : start + _ROWS], k, exclude_seen, allow, deny)
            for start in range(0, len(histories), _ROWS)
        ]
        return Answers(*map(np.concatenate, zip(*(vars(part).values() for part in parts))))

    def _answer(
        self,
        histories: Sequence[Sequence],
        k: int,
        exclude_seen: bool,
        allow: Sequence | None,
        deny: Sequence | None,
    ) -> Answers:
        encoded = self.encode(histories)
        rows = len(histories)
        codes, scores = self.rank(
            encoded, k, self.blocked(encoded, [exclude_seen] * rows, [allow] * rows, [deny] * rows)
        )
        scores = np.where(codes >= FIRST_ITEM, scores, np.nan).astype(np.float32)
        return Answers(self.vocabulary.decode(codes), scores, encoded.unknown, encoded.fallback)

    def recommend(self, histories: Sequence[Sequence], k: int = 10, **filters) -> pd.DataFrame:
        """The best k items of each history as a table()."""
        return table(self.answer(histories, k, **filters))


def check_question(
    histories: Iterable, k: int, allow: Iterable | None = None, deny: Iterable | None = None
) -> tuple[list[list], list | None, list | None]:
    """The histories, allowed and denied ids as lists; InputError if they or k cannot be meant."""
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
    """Whether something is no list: the letters of a text and the keys of a mapping are not meant."""
    return isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def no_answers(k: int) -> Answers:
    """The answers to no history."""
    empty = np.empty((0, k))
    return Answers(empty.astype(object), empty.astype(np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


def table(answers: Answers) -> pd.DataFrame:
    """Answers as one row a recommendation: history (its position), rank (from 1), item_id, score."""
    row, column = np.nonzero(answers.items != None)  # noqa: E711 - elementwise
    return pd.DataFrame(
        {"history": row, "rank": column + 1, ITEM: answers.items[row, column], "score": answers.scores[row, column]}
    )


def _embedded(dataset: Dataset, config: Config) -> Dataset:
    """The dataset with the vectors of stage `embed`, which is run."""
    if dataset.run is None or not any((dataset.run / "ingest" / ITEMS).glob("*.parquet")):
        raise InputError(
            f"the model {config.model.name} reads item vectors: give the dataset items with attributes "
            "(Dataset.from_frames(interactions, items)), run `llmcfsr embed`, or choose a model of ids, e.g. sasrec"
        )
    from llmcfsr_merlin.text import embed_stage

    embed_stage.run(config, dataset.run)
    return dataset.reloaded()
