"""A small sealed model of random weights for the tests of serving."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.scoring.checkpoint import save_model
from llmcfsr_merlin.serving.bundle import FOLDER
from llmcfsr_merlin.serving.repository import FRONT, layout, versions
from tests.models import model_config, random_model

ITEMS, LENGTH, DIMENSION = 60, 12, 24
IDS = [f"B{i:03d}" for i in range(ITEMS)]


def write_model(
    directory: Path,
    ids: list[str] | None = None,
    seed: int = 0,
    dimension: int = DIMENSION,
    lexical: int | None = None,
    history_rule: str | None = None,
    retired: Sequence[int] = (),
    **settings,
) -> Path:
    """Vocabulary, weights and manifest in `directory`; settings as in tests.models, two views by default.

    lexical: the dimension of lexical vectors, None: the model has none. history_rule: None as models of earlier
    versions have it. retired: places in `ids`.
    """
    ids = IDS if ids is None else ids
    directory.mkdir(parents=True, exist_ok=True)
    counts = np.arange(len(ids), 0, -1)
    model = random_model(
        model_config(**settings), len(ids) + 3, LENGTH, dimension, lexical, np.r_[0, 0, 0, counts], seed
    )
    model.history_rule = history_rule
    model.retire([place + 3 for place in retired])
    columns = {"item_id": ids, "code": np.arange(3, len(ids) + 3), "count": counts, "train_count": counts}
    pq.write_table(pa.table(columns), directory / "vocabulary.parquet")
    save_model(model, directory, Vocabulary.load(directory / "vocabulary.parquet").hash)
    seal(directory, "train", "key", {})
    return directory


def served_bundle(repository: Path) -> Path:
    """Folder of the newest bundle of a repository: Recommender.load reads it."""
    model = "rank" if layout(repository) == "ensemble" else FRONT
    return Path(repository) / model / str(versions(repository)[-1]) / FOLDER
