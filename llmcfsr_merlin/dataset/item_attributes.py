"""Attributes of items as a table of zeros and ones, from the items that stage ingest wrote."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_vectors import match_ids
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, ITEMS


def item_attributes(dataset: Dataset, columns: Sequence[str]) -> sparse.csr_matrix | None:
    """float32 [V, A]: 1 where an item has the attribute, a text of one of these columns (text, or a list of texts).

    None if no item of the vocabulary has any. A column that a log lacks has no attributes.
    """
    wanted = pa.array(dataset.vocabulary.ids.tolist(), type=pa.string())
    rows: list[int] = []
    names: list[tuple[int, str]] = []
    for path in sorted((Path(dataset.prepared).parent / "ingest" / ITEMS).glob("*.parquet")):
        for number, column in enumerate(columns):
            if column not in pq.read_schema(path).names:
                continue
            table = pq.read_table(path, columns=[ITEM, column])
            codes = match_ids(table[ITEM].cast(pa.string()), wanted)
            for code, value in zip(codes.tolist(), table[column].to_pylist()):
                of = [value] if isinstance(value, str) else value or ()
                found = [(number, name) for name in dict.fromkeys(of) if name] if code >= 0 else []
                rows += [code + FIRST_ITEM] * len(found)
                names += found
    if not names:
        return None
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    shape = (len(wanted) + FIRST_ITEM, len(places))
    found = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, [places[name] for name in names])), shape)
    found.data[:] = 1  # an item that is listed twice
    return found
