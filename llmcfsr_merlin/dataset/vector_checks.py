"""Validates vectors at every hand-over: finite, not zero, not constant."""

from collections.abc import Sequence

import numpy as np

from llmcfsr_merlin.runtime.errors import InputError

_CONSTANT = 3  # distinct inputs with an identical vector: two can happen by chance in bfloat16, three do not


def check_finite(vectors: np.ndarray, ids: Sequence[str], where: str) -> None:
    """InputError with item ids if a row of `vectors` (N, D) holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}: expected finite vectors, found NaN or infinity for {_name(ids, bad)}: "
            "encode in float32 or bfloat16 and check the model's weights"
        )


def check_encoded(vectors: np.ndarray, ids: Sequence[str], where: str) -> None:
    """Check the vectors (N, D) of N *different* inputs; InputError names items that are NaN, zero or all the same."""
    check_finite(vectors, ids, where)
    zero = np.flatnonzero(~vectors.any(axis=1))
    if len(zero):
        raise InputError(f"{where}: expected no zero vector, found it for {_name(ids, zero)}: check the model")
    _, inverse, counts = np.unique(np.ascontiguousarray(vectors), axis=0, return_inverse=True, return_counts=True)
    if len(counts) and counts.max() >= _CONSTANT:
        same = np.flatnonzero(np.ravel(inverse) == counts.argmax())
        raise InputError(
            f"{where}: expected different vectors for different texts, found the same one for {_name(ids, same)}: "
            "check pooling, embed.max_tokens (too small truncates texts to the same prefix) and the model's weights"
        )


def _name(ids: Sequence[str], rows: np.ndarray) -> str:
    shown = ", ".join(str(ids[row]) for row in rows[:5])
    return f"{len(rows)} item{'s' if len(rows) > 1 else ''} ({shown}{', ...' if len(rows) > 5 else ''})"
