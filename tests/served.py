"""A small sealed model of random weights for the tests of serving."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.scoring.checkpoint import save_model
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork

ITEMS, LENGTH, DIMENSION = 60, 12, 24
IDS = [f"B{i:03d}" for i in range(ITEMS)]


def write_model(
    directory: Path,
    ids: list[str] | None = None,
    seed: int = 0,
    dimension: int = DIMENSION,
    lexical: int | None = None,
    **settings,
) -> Path:
    """Vocabulary, weights and manifest in `directory`; settings are of ModelConfig, two views by default.

    lexical: the dimension of lexical vectors, None: the model has none.
    """
    torch.manual_seed(seed)
    ids = IDS if ids is None else ids
    directory.mkdir(parents=True, exist_ok=True)
    counts = np.arange(len(ids), 0, -1)
    config = ModelConfig(**{"hidden": 16, "transition_neighbours": 5, **settings})
    vectors = None
    if config.views != ("collaborative",):
        vectors = torch.randn(len(ids) + 3, dimension)
        vectors[:3] = 0
    network = DualViewNetwork(config, len(ids) + 3, LENGTH, None if vectors is None else dimension, lexical)
    transitions = None
    if config.transition_neighbours:
        shape = (len(ids), config.transition_neighbours)
        followers = torch.randint(3, len(ids) + 3, shape), torch.rand(shape) / 10
        transitions = tuple(torch.nn.functional.pad(part, (0, 0, 3, 0)) for part in followers)
    words = torch.nn.functional.pad(torch.randn(len(ids), lexical), (0, 0, 3, 0)) if lexical else None
    network.initialise(torch.tensor(np.r_[0, 0, 0, counts]), vectors, transitions, words)
    network.gamma.fill_(2.0)
    network.cold_gamma.fill_(3.0)
    network.transition_gamma.fill_(0.5)
    columns = {"item_id": ids, "code": np.arange(3, len(ids) + 3), "count": counts, "train_count": counts}
    pq.write_table(pa.table(columns), directory / "vocabulary.parquet")
    save_model(network, directory, Vocabulary.load(directory / "vocabulary.parquet").hash)
    seal(directory, "train", "key", {})
    return directory
