"""The papers' interaction files, where the data is at hand."""

import gzip
import os
from pathlib import Path

import pytest

from llmcfsr_merlin.dataset.names import FIRST_ITEM


@pytest.fixture(scope="session")
def paper_sequences():
    """Function: name of a paper's data -> sequences by user, codes from FIRST_ITEM; skips without the file."""

    def load(name: str) -> dict[str, list[int]]:
        root = Path(os.environ.get("LLMCFSR_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
        path = root / name / "inter.txt.gz"
        if not path.is_file():
            pytest.skip(f"{path} is not here")
        sequences: dict[str, list[int]] = {}
        with gzip.open(path, "rt") as stream:
            for line in stream:
                user, item = line.split()
                sequences.setdefault(user, []).append(int(item) - 1 + FIRST_ITEM)
        return sequences

    return load
