"""Tiny prepare directories written by hand: no NVTabular needed to test what comes after it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import CODE, COUNT, FIRST_ITEM, ITEM, SEQUENCES, TRAIN_COUNT, USER, VOCABULARY
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorer import FitContext


def write_prepare(directory: Path, sequences: dict[str, list[int]], rows: int, parts: int = 2) -> np.ndarray:
    """Write sequences in `parts` files and the vocabulary; returns the training counts [rows]."""
    (directory / SEQUENCES).mkdir(parents=True)
    frame = pd.DataFrame({USER: list(sequences), ITEM: list(sequences.values())})
    for number, rows_of_part in enumerate(np.array_split(np.arange(len(frame)), parts)):
        frame.iloc[rows_of_part].to_parquet(directory / SEQUENCES / f"part-{number:05d}.parquet")
    count, train = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for sequence in sequences.values():
        np.add.at(count, sequence, 1)
        np.add.at(train, sequence[:-2], 1)
    codes = np.arange(FIRST_ITEM, rows)
    vocabulary = {ITEM: [f"i{code}" for code in codes], CODE: codes, COUNT: count[codes], TRAIN_COUNT: train[codes]}
    pd.DataFrame(vocabulary).to_parquet(directory / VOCABULARY)
    return train


def fitted(name: str, prepare: Path, max_length: int = 200, **settings):
    """A closed-form model, fitted on a directory of write_prepare: its scores."""
    model = ModelConfig(name=name, scorers={name: settings})
    context = FitContext(prepare, train=lambda network: pytest.fail("nothing is trained here"))
    return Ranker(Ensemble.fit(model, Dataset(prepare, max_length=max_length), context)).scores


def random_sequences(users: int, rows: int, seed: int = 0) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed)
    return {
        f"u{number}": generator.integers(FIRST_ITEM, rows, generator.integers(3, 12)).tolist()
        for number in range(users)
    }
