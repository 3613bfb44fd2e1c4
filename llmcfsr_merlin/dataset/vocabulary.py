"""Encodes raw item ids and decodes them, in memory: like NVTabular's fitted Categorify, at microseconds per row."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import CODE, COUNT, FIRST_ITEM, ITEM, OOV, PAD, TRAIN_COUNT
from llmcfsr_merlin.dataset.raw.fields.ids import NotAnId, clean_id
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import hash_json


class Vocabulary:
    """The items of a run in order of their encoded ids.

    ids: raw ids; ids[j] has encoded id j + FIRST_ITEM. counts, train_counts: int64 [V], zero on reserved rows; V =
    len(ids) + FIRST_ITEM. `hash` identifies the mapping: artefacts of other vocabularies are refused.
    """

    def __init__(self, ids: Sequence[str], counts: np.ndarray | None = None, train_counts: np.ndarray | None = None):
        self.ids = np.asarray(ids, dtype=object)
        if len(self.ids) == 0:
            raise InputError("expected a vocabulary with at least one item, found none: run `llmcfsr prepare --force`")
        self._codes = dict(zip(self.ids.tolist(), range(FIRST_ITEM, len(self))))
        if len(self._codes) != len(self.ids):
            raise InputError(
                "expected one vocabulary row per item, found repeated item ids: run `llmcfsr prepare --force`"
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
        """Read vocabulary.parquet; InputError if encoded ids do not run from FIRST_ITEM without gaps."""
        table = pq.read_table(path)
        frame = {name: table[name].to_numpy() for name in (ITEM, CODE, COUNT, TRAIN_COUNT)}
        if not np.array_equal(frame[CODE], np.arange(FIRST_ITEM, FIRST_ITEM + len(table))):
            raise InputError(
                f"{path}: expected encoded ids {FIRST_ITEM}, {FIRST_ITEM + 1}, ... in order: "
                "run `llmcfsr prepare --force`"
            )
        return cls(frame[ITEM], frame[COUNT], frame[TRAIN_COUNT])

    def save(self, path: str | Path) -> None:
        """Write vocabulary.parquet."""
        codes = np.arange(FIRST_ITEM, len(self))
        counts = {COUNT: self.counts[codes], TRAIN_COUNT: self.train_counts[codes]}
        columns = {ITEM: self.ids.tolist(), CODE: codes, **counts}
        pq.write_table(pa.table(columns), path)

    def __len__(self) -> int:
        """V (n_items): the number of rows of every item-side array, reserved rows included."""
        return len(self.ids) + FIRST_ITEM

    def encode(self, history: Iterable) -> list[int]:
        """Encode one history; ids are cleaned as those of a log (clean_id); unknown ones become OOV; None, NaN
        and empty strings become PAD. Raises InputError for a string or a number instead of a list.

        >>> Vocabulary(["a", "b", "10"]).encode(["b", "zzz", " a ", 10.0])
        [4, 2, 3, 5]
        """
        if isinstance(history, (str, bytes)) or not isinstance(history, Iterable):
            raise InputError(f"expected a list of item ids, found {history!r}: write [{history!r}]")
        return [self._code(raw) for raw in history]

    def _code(self, raw: object) -> int:
        if isinstance(raw, str):  # already clean in nearly all cases
            found = self._codes.get(raw)
            if found is not None:
                return found
        try:
            text = clean_id(raw)
        except NotAnId as error:
            raise InputError(f"{error}: a history is a list of item ids") from error
        return PAD if text is None else self._codes.get(text, OOV)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Raw ids (object array of the same shape) of encoded ids; reserved ids become None."""
        codes = np.asarray(codes)
        real = codes >= FIRST_ITEM
        raw = np.full(codes.shape, None, dtype=object)
        raw[real] = self.ids[codes[real] - FIRST_ITEM]
        return raw
