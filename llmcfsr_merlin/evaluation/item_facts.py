"""What evaluation knows of items, read from a prepared and embedded run: users, texts' vectors, categories."""

import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import sparse

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_attributes import item_attributes
from llmcfsr_merlin.dataset.item_vectors import load_item_table
from llmcfsr_merlin.dataset.names import VECTORS
from llmcfsr_merlin.evaluation.lists import ItemFacts
from llmcfsr_merlin.runtime.free_memory import available_memory

_log = logging.getLogger(__name__)

CATEGORIES = "categories"  # column of ingest's items: text, or a list of texts


def item_facts(dataset: Dataset) -> ItemFacts:
    """The facts that there are files for; vectors that would take over a quarter of the free memory are left out."""
    train_counts = dataset.train_counts
    item_users, users = np.zeros(len(train_counts), np.int64), 0
    for block in dataset.sequences(held_out=2):
        users += len(block)
        item_users += np.bincount(np.concatenate([np.unique(one) for one in block]), minlength=len(train_counts))
    ids = dataset.vocabulary.ids.tolist()
    return ItemFacts(train_counts, item_users, users, _vectors(dataset, ids), _categories(dataset))


def _vectors(dataset: Dataset, ids: list[str]) -> np.ndarray | None:
    folder = None if dataset.embedded is None else Path(dataset.embedded) / VECTORS
    if folder is None or not any(folder.glob("part-*.parquet")):
        return None
    dimension = pq.read_schema(next(folder.glob("part-*.parquet"))).field("vector").type.list_size
    if 4 * len(ids) * dimension > available_memory() // 4:
        _log.warning("the items' vectors take over a quarter of the free memory: lists' diversity is not measured")
        return None
    table = load_item_table(ids, folder)
    vectors = table.vectors / np.maximum(np.linalg.norm(table.vectors, axis=1, keepdims=True), 1e-12)
    vectors[~table.has_text] = 0
    return vectors.astype(np.float32)


def _categories(dataset: Dataset) -> sparse.csr_matrix | None:
    """Each category's share of an item's."""
    found = item_attributes(dataset, [CATEGORIES])
    if found is None:
        return None
    found.data /= np.repeat(found.getnnz(1), found.getnnz(1))
    return found
