"""Raw item ids to codes and back, in memory: what NVTabular's fitted Categorify does, at microseconds a row."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llmcfsr_merlin.contract import CODE, COUNT, FIRST_ITEM, ITEM, OOV, PAD, TRAIN_COUNT
from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.stage import hash_json


class Vocabulary:
    """The items of a run in code order.

    ids: raw ids; ids[j] has code j + FIRST_ITEM. counts, train_counts: int64 [V], zero on reserved rows; V = len(ids) +
    FIRST_ITEM. `hash` identifies the mapping: artefacts of another vocabulary are refused.
    """

    def __init__(self, ids: Sequence[str], counts: np.ndarray | None = None, train_counts: np.ndarray | None = None):
        self.ids = np.asarray(ids, dtype=object)
        if len(self.ids) == 0:
            raise InputError("expected a vocabulary with at least one item, found none: run `llmcfsr prepare --force`")
        self._codes = {raw: code for code, raw in enumerate(self.ids, FIRST_ITEM)}
        if len(self._codes) != len(self.ids):
            raise InputError(
                "expected one vocabulary row an item, found repeated item ids: run `llmcfsr prepare --force`"
            )
        reserved = np.zeros(FIRST_ITEM, np.int64)
        none = np.zeros(len(self.ids), np.int64)
        self.counts = np.concatenate([reserved, none if counts is None else np.asarray(counts, np.int64)])
        self.train_counts = np.concatenate(
            [reserved, none if train_counts is None else np.asarray(train_counts, np.int64)]
        )
        self.hash = hash_json(self.ids.tolist())

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read vocabulary.parquet; InputError where codes do not run from FIRST_ITEM without a gap."""
        frame = pq.read_table(path).to_pydict()
        codes = frame[CODE]
        if codes != list(range(FIRST_ITEM, FIRST_ITEM + len(codes))):
            raise InputError(
                f"{path}: expected codes {FIRST_ITEM}, {FIRST_ITEM + 1}, ... in order: run `llmcfsr prepare --force`"
            )
        return cls(frame[ITEM], frame[COUNT], frame[TRAIN_COUNT])

    def __len__(self) -> int:
        """V: the number of rows of every item-side array, reserved rows included."""
        return len(self.ids) + FIRST_ITEM

    def encode(self, history: Iterable) -> list[int]:
        """Codes of one history; unknown ids become OOV, None the padding code, integers their decimal string.

        >>> Vocabulary(["a", "b"]).encode(["b", "zzz", "a"])
        [4, 2, 3]
        """
        codes = self._codes
        return [PAD if raw is None else codes.get(raw if isinstance(raw, str) else str(raw), OOV) for raw in history]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Raw ids (object array of the same shape) of codes; reserved codes become None."""
        codes = np.asarray(codes)
        real = codes >= FIRST_ITEM
        raw = np.full(codes.shape, None, dtype=object)
        raw[real] = self.ids[codes[real] - FIRST_ITEM]
        return raw
