"""Reduction of the vectors: PCA or standardisation, fitted once, stored, and applied to new items later."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors

_NULL = 1e-7  # directions below this share of the largest variance are rounding noise


@dataclass(frozen=True)
class Reduction:
    """The linear map x -> (x - mean) @ matrix, or x itself for "none".

    mean: (D,) float32, over the items with text; matrix: (D, R) float32, None for "none";
    explained: share of variance kept.
    """

    method: str
    mean: np.ndarray
    matrix: np.ndarray | None = None
    explained: float = 1.0

    @classmethod
    def fit(cls, method: str, batches: Iterable[np.ndarray], dimension: int | None = None) -> "Reduction":
        """Fit on batches of rows (n, D). Memory is D x D, whatever the number of rows.

        pca keeps the `dimension` directions of most variance; standardise scales each of the D columns to variance 1.
        Raises InputError if `dimension` exceeds D or the rank of the data.
        """
        count, total, product = 0, np.zeros(()), np.zeros(())
        for batch in batches:
            batch = np.asarray(batch, dtype=np.float64)
            count, total = count + len(batch), total + batch.sum(0)
            if method != "none":
                product = product + batch.T @ batch
        fewest = 1 if method == "none" else 2
        if count < fewest:
            raise InputError(f"embed.reduction {method}: expected at least {fewest} items with text, found {count}")
        mean = total / count
        if method == "none":
            return cls("none", mean.astype(np.float32))
        covariance = product / count - np.outer(mean, mean)
        size = len(mean)
        if method == "standardise":
            variance = np.diag(covariance)
            scale = np.where(variance > _NULL * variance.max(), 1 / np.sqrt(np.maximum(variance, 1e-30)), 0.0)
            return cls(method, mean.astype(np.float32), np.diag(scale).astype(np.float32))
        kept = dimension or size
        if kept > size:
            raise InputError(f"embed.dimension: expected at most the model's {size}, found {kept}")
        values, directions = np.linalg.eigh(covariance)
        values, directions = np.maximum(values[::-1], 0), directions[:, ::-1]
        # Eigenvector signs are arbitrary; fixing them makes fits reproducible.
        directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(size)])
        explained = float(values[:kept].sum() / max(values.sum(), 1e-30))
        matrix = np.ascontiguousarray(directions[:, :kept], dtype=np.float32)
        return cls(method, mean.astype(np.float32), matrix, round(explained, 6))

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Map rows (n, D) to (n, R), float32."""
        if self.matrix is None:
            return np.asarray(vectors, dtype=np.float32)
        return (np.asarray(vectors, dtype=np.float32) - self.mean) @ self.matrix

    def finish(self, vectors: np.ndarray, has_text: np.ndarray) -> np.ndarray:
        """Map rows (n, D) to (n, R); rows without text get the mean vector (zero if the map centres)."""
        filled = np.where(np.asarray(has_text)[:, None], vectors, self.mean)
        return self.apply(filled)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tensors = {"mean": self.mean} | ({} if self.matrix is None else {"matrix": self.matrix})
        header = json.dumps({"method": self.method, "explained": self.explained})
        save_tensors(tensors, path, {"reduction": header})

    @classmethod
    def load(cls, path: Path) -> "Reduction":
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as stream:
            header = json.loads(stream.metadata()["reduction"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        return cls(header["method"], tensors["mean"], tensors.get("matrix"), header["explained"])
