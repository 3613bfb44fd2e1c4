"""What a results page says of the times of the last steps."""

import pytest

from llmcfsr_merlin.cli.results import said_ties
from llmcfsr_merlin.runtime.manifest import seal

TIES = {"users": 600, "untimed": False, "tied_last_two": 5, "tied_last_three": 1}


@pytest.mark.parametrize(
    "counts, said",
    [
        (TIES, "5 of 600 users' last two interactions have the same time"),
        (TIES | {"tied_last_two": 0}, ""),
        (TIES | {"tied_last_two": 0, "untimed": True}, "the log has an order but no times"),
        ({"users": 600}, "it is unknown whether users' last interactions share times"),
    ],
)
def test_ties_are_said(tmp_path, counts, said):
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "vocabulary.parquet").touch()
    seal(tmp_path / "prepare", "prepare", "key", counts)
    found = said_ties(tmp_path)
    assert found.startswith(said) and bool(found) == bool(said)
