"""The training rows in memory, end to end."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import ITEM


def rows_of(files: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Parquet with one list of encoded ids per row -> all items, int64 [N], and the length of each row, int64."""
    lists = [pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks() for file in files]
    values = np.concatenate([part.flatten().to_numpy() for part in lists])
    lengths = np.concatenate([part.value_lengths().to_numpy() for part in lists])
    return torch.from_numpy(values).long(), torch.from_numpy(lengths).long()
