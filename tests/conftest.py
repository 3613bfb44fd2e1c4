"""What every test has; Merlin is prepared before any test module imports it."""

import llmcfsr_merlin.runtime.merlin_compat  # noqa: F401

# isort: split
from collections.abc import Iterator

import pytest

from llmcfsr_merlin.cli.log import shown


@pytest.fixture(autouse=True)
def _lines_on_stderr() -> Iterator[None]:
    """What the library logs is shown as the command line shows it: tests read it where users do."""
    with shown():
        yield
