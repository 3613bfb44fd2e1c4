"""Validates one request's tensors and splits them into rows. Every error names the field."""

from dataclasses import dataclass

import numpy as np

from llmcfsr_merlin.runtime.errors import InputError

DEFAULT_K = 10


@dataclass(frozen=True)
class Limits:
    """What a repository was exported with. max_top_k: the largest TOP_K allowed. shortlist, uncertain, shard: as in
    Ranker. engine: serve.engine."""

    max_top_k: int = 100
    shortlist: int = 0
    uncertain: str = "answer"
    engine: str = "torch"
    shard: tuple[int, int] | None = None


@dataclass(frozen=True)
class Row:
    """One row of a request. allow None: every item; deny empty: no item. explain: give reasons."""

    history: list[str]
    k: int
    exclude_seen: bool
    allow: list[str] | None
    deny: list[str]
    explain: bool


def parse(tensors: dict[str, np.ndarray], limits: Limits, excludes_seen: bool = False) -> list[Row]:
    """Tensors of one request ([B, ...] each) to B rows; InputError names the field that is wrong.

    excludes_seen: what a request without EXCLUDE_SEEN means. Empty strings are padding, so that rows of different
    lengths fit one tensor.
    """
    if "HISTORY" not in tensors:
        raise InputError("HISTORY is missing: expected a BYTES tensor [rows, length] of raw item ids, oldest first")
    count = len(tensors["HISTORY"])
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or len(tensor) != count:
            raise InputError(f"{name}: expected {count} rows as in HISTORY, found shape {list(tensor.shape)}")
    if not count:
        raise InputError("HISTORY: expected at least one row, found none")
    histories = _ids(tensors["HISTORY"])
    ks = _column(tensors, "TOP_K", DEFAULT_K, count)
    for k in ks:
        if not 1 <= k <= limits.max_top_k:
            raise InputError(f"TOP_K: expected 1 to {limits.max_top_k} (serve.max_top_k), found {k}")
    seen = _column(tensors, "EXCLUDE_SEEN", excludes_seen, count)
    allow: list = [None] * count
    if "ALLOW" in tensors:
        allow = _ids(tensors["ALLOW"])
        if not all(allow):
            raise InputError(
                "ALLOW: expected at least one id in every row, found none: leave it out to allow every item"
            )
    deny = _ids(tensors["DENY"]) if "DENY" in tensors else [[]] * count
    explain = _column(tensors, "EXPLAIN", False, count)
    return [Row(*row) for row in zip(histories, ks, seen, allow, deny, explain)]


def _ids(tensor: np.ndarray) -> list[list[str]]:
    return [[_text(raw) for raw in row if raw] for row in tensor.tolist()]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # as ingest reads bytes that are not text
        return raw.hex()


def _column(tensors: dict[str, np.ndarray], name: str, default: object, count: int) -> list:
    if name not in tensors:
        return [default] * count
    if tensors[name].shape[1] != 1:
        raise InputError(f"{name}: expected one value per row, found shape {list(tensors[name].shape)}")
    return tensors[name][:, 0].tolist()
