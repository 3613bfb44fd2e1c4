"""Lexical vectors: the mean of word vectors trained only on the items' own prompts.

A language model knows general word meanings; these capture what distinguishes items in this catalogue. The content
score reads both (docs/semantics.md measures the effect).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from llmcfsr_merlin.runtime.files import save_tensors

MIN_COUNT = 2  # words of a single item connect no items
MAX_WORDS = 50_000  # the most frequent ones
_WINDOW = 5
_SIF = 1e-3
_DENSE = 512  # up to so many words a full decomposition is used: ARPACK needs larger matrices
_PROMPTS = 1 << 14  # pairs counted at once

_words = re.compile(r"\w\w+").findall


@dataclass(frozen=True)
class Lexical:
    """Word vectors, fitted once and applied to new items later.

    Word vectors factorise the shifted positive PMI of words within five places, which is what word2vec's skip-gram with
    negative sampling does (Levy and Goldberg, NeurIPS 2014); their mean, weighted by rareness and without what all
    items have in common, follows SIF (Arora et al., ICLR 2017).

    words: the T words, most frequent first; vectors: (T, E) float32, weighted; common: (E,) float32, unit norm.
    """

    words: tuple[str, ...]
    vectors: np.ndarray
    common: np.ndarray

    @classmethod
    def fit(cls, prompts: Sequence[str], dimension: int) -> "Lexical | None":
        """Fit on prompts; at most `dimension` numbers per word, fewer if there are not as many words.

        None if no two words that occur in several prompts ever co-occur.
        """
        documents = Counter(word for prompt in prompts for word in set(_words(prompt.lower())))
        kept = sorted((word for word in documents if documents[word] >= MIN_COUNT), key=lambda w: (-documents[w], w))
        words = tuple(kept[:MAX_WORDS])
        place = {word: number for number, word in enumerate(words)}
        pairs = _pairs(prompts, place)
        ppmi = _ppmi(pairs)
        if ppmi.nnz == 0:
            return None
        size = min(dimension, len(words) - 1)
        if len(words) <= _DENSE:
            left, values, _ = np.linalg.svd(ppmi.toarray())
            left, values = left[:, :size], values[:size]
        else:
            start = np.random.default_rng(0).normal(size=len(words))  # deterministic
            left, values, _ = svds(ppmi, k=size, v0=start)
        counts = np.zeros(len(words))
        for codes, _ in _coded(prompts, place):
            counts += np.bincount(codes, minlength=len(words))
        rareness = _SIF / (_SIF + counts / counts.sum())
        vectors = np.ascontiguousarray(left * np.sqrt(values) * rareness[:, None], np.float32)
        found = cls(words, vectors, np.zeros(size, np.float32))
        means = found.encode(prompts)
        _, basis = np.linalg.eigh(means.T @ means)
        return cls(words, vectors, np.ascontiguousarray(basis[:, -1], np.float32))

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """(n, E) float32 unit rows; zero if a prompt has none of the words."""
        place = {word: number for number, word in enumerate(self.words)}
        parts = [np.zeros((0, len(self.common)), np.float32)]
        for start in range(0, len(prompts), _PROMPTS):
            some = prompts[start : start + _PROMPTS]
            ((codes, row),) = _coded(some, place)
            has = csr_matrix((np.ones(len(codes), np.float32), (row, codes)), (len(some), len(self.words)))
            has.data[:] = 1  # a word counts once
            means = _unit(has @ self.vectors)
            parts.append(_unit(means - (means @ self.common)[:, None] * self.common))
        return np.concatenate(parts)

    def save(self, path: Path) -> None:
        """Write as safetensors, the words as UTF-8 lines."""
        lines = np.frombuffer("\n".join(self.words).encode(), np.uint8)
        save_tensors({"words": lines, "vectors": self.vectors, "common": self.common}, path)

    @classmethod
    def load(cls, path: Path) -> "Lexical":
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        tensors = load_file(str(path))
        words = tuple(tensors["words"].tobytes().decode().split("\n"))
        return cls(words, tensors["vectors"], tensors["common"])


def _coded(prompts: Sequence[str], place: dict[str, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The known words of some prompts at a time: word ids int64 [M], in order, and the prompt of each, [M]."""
    remaining = iter(prompts)
    while some := list(islice(remaining, _PROMPTS)):
        codes = [[place[word] for word in _words(prompt.lower()) if word in place] for prompt in some]
        row = np.repeat(np.arange(len(some)), [len(one) for one in codes])
        yield np.fromiter((code for one in codes for code in one), np.int64, len(row)), row


def _pairs(prompts: Sequence[str], place: dict[str, int]) -> csr_matrix:
    """Co-occurrence counts of words within the window, [T, T]."""
    total = csr_matrix((len(place), len(place)))
    for codes, row in _coded(prompts, place):
        first, second = [], []
        for distance in range(1, _WINDOW + 1):
            together = row[distance:] == row[:-distance]
            first.append(codes[:-distance][together])
            second.append(codes[distance:][together])
        first, second = np.concatenate(first), np.concatenate(second)
        total = total + csr_matrix((np.ones(len(first)), (first, second)), total.shape)
    return csr_matrix(total + total.T)


def _ppmi(pairs: csr_matrix) -> csr_matrix:
    """Positive PMI with context counts smoothed by exponent 0.75, as in word2vec."""
    pairs = pairs.tocoo()
    margin = np.bincount(pairs.row, pairs.data, minlength=pairs.shape[0])
    smooth = margin**0.75 / max((margin**0.75).sum(), 1)
    pmi = np.log(pairs.data / (margin[pairs.row] * smooth[pairs.col]))
    kept = pmi > 0
    return csr_matrix((pmi[kept], (pairs.row[kept], pairs.col[kept])), pairs.shape)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
