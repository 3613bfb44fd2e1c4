"""Baseline item vectors without a language model: LSA and lexical vectors."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse.linalg import svds

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.text.lexical import MIN_COUNT, Lexical


def tfidf_svd(prompts: Sequence[str], dimension: int = 384) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and word pairs, truncated SVD. (n, dimension) float32 unit rows.

    Zero rows if a prompt shares no word with another one.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise MissingDependency(f"this baseline needs scikit-learn ({error}): pip install scikit-learn") from error
    matrix = TfidfVectorizer(min_df=MIN_COUNT, ngram_range=(1, 2), sublinear_tf=True).fit_transform(prompts)
    start = np.random.default_rng(0).normal(size=min(matrix.shape))
    left, values, _ = svds(matrix, k=min(dimension, min(matrix.shape) - 1), v0=start)
    rows = left * values
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def word_vectors(prompts: Sequence[str], dimension: int = 384) -> np.ndarray:
    """Lexical vectors only, in place of a language model's. (n, dimension) float32 unit rows."""
    lexical = Lexical.fit(prompts, dimension)
    if lexical is None:
        raise InputError("expected prompts that share words, found none")
    return lexical.encode(prompts)
