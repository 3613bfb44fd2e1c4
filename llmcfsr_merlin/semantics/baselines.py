"""Item vectors without a language model, to compare with: what a team has that may not run one."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import svds

from llmcfsr_merlin.errors import MissingDependency

MIN_COUNT = 2  # words of a single item connect nothing


def tfidf_svd(prompts: Sequence[str], dimension: int = 384, seed: int = 0) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and word pairs, truncated SVD. (n, dimension) float32 unit rows.

    Zero rows where a prompt has no word that another one has.
    """
    from_text = _sklearn().TfidfVectorizer(min_df=MIN_COUNT, ngram_range=(1, 2), sublinear_tf=True)
    matrix = from_text.fit_transform(prompts)
    dimension = min(dimension, min(matrix.shape) - 1)
    return _unit(_project(matrix, dimension, seed))


def word_vectors(prompts: Sequence[str], dimension: int = 384, window: int = 5, seed: int = 0) -> np.ndarray:
    """Mean of word vectors trained on the prompts themselves, weighted by idf, common direction removed.

    Word vectors factorise the shifted positive PMI of words within `window`, which is what word2vec's skip-gram with
    negative sampling does (Levy and Goldberg, NeurIPS 2014); the mean follows SIF (Arora et al., ICLR 2017).
    """
    counter = _sklearn().CountVectorizer(min_df=MIN_COUNT)
    matrix = counter.fit_transform(prompts)
    analyse, vocabulary = counter.build_analyzer(), counter.vocabulary_
    first, second = [], []
    for prompt in prompts:
        words = [vocabulary[word] for word in analyse(prompt) if word in vocabulary]
        for distance in range(1, window + 1):
            first += words[:-distance] if distance < len(words) else []
            second += words[distance:]
    both = csr_matrix(coo_matrix((np.ones(len(first)), (first, second)), shape=(len(vocabulary),) * 2))
    pairs = coo_matrix(both + both.T)
    margin = np.asarray(pairs.sum(1)).ravel()
    # Context counts are smoothed by the power 0.75, as word2vec does.
    smooth = margin**0.75 / (margin**0.75).sum()
    pmi = np.log(pairs.data / (margin[pairs.row] * smooth[pairs.col]))
    kept = pmi > 0
    ppmi = csr_matrix((pmi[kept], (pairs.row[kept], pairs.col[kept])), shape=pairs.shape)
    dimension = min(dimension, len(vocabulary) - 1)
    left, values, _ = svds(ppmi, k=dimension, v0=np.random.default_rng(seed).normal(size=len(vocabulary)))
    words = left * np.sqrt(values)
    frequency = np.asarray(matrix.sum(0)).ravel() / matrix.sum()
    mean = np.asarray((matrix.astype(bool) @ diags(1e-3 / (1e-3 + frequency))) @ words)
    mean = _unit(mean)
    _, _, direction = svds(mean, k=1, v0=np.ones(min(mean.shape)))
    return _unit(mean - mean @ direction.T @ direction)


def _project(matrix, dimension: int, seed: int) -> np.ndarray:
    left, values, _ = svds(matrix, k=dimension, v0=np.random.default_rng(seed).normal(size=min(matrix.shape)))
    return left * values


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _sklearn():
    try:
        from sklearn.feature_extraction import text
    except ImportError as error:
        raise MissingDependency(f"this baseline needs scikit-learn ({error}): pip install scikit-learn") from error
    return text
