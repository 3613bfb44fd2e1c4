"""`make lock`: pins of two Pythons in one file."""

import runpy
from pathlib import Path

import pytest

LOCK = Path(__file__).parents[2] / ".ci" / "lock.py"


@pytest.fixture
def locked(tmp_path):
    """Freeze an environment, given as (older than 3.11, pins), into a file; returns its pins."""
    path = tmp_path / "constraints.txt"
    path.write_text('# header\npip<26.3\nboth==1\nold-only==1; python_version < "3.11"\n')

    def lock(older: bool, *pins: str) -> list[str]:
        python = tmp_path / "python"
        frozen = "\\n".join([*pins, ""])
        python.write_text(f"#!/bin/sh\nif [ $1 = -c ]; then echo {older}; else printf '{frozen}'; fi\n")
        python.chmod(0o755)
        runpy.run_path(str(LOCK))["main"](str(python), path)
        return [line for line in path.read_text().splitlines() if "==" in line]

    return lock


def test_a_version_that_differs_keeps_both(locked):
    assert locked(False, "both==2", "new==1") == [
        'both==1; python_version < "3.11"', 'both==2; python_version >= "3.11"', 'new==1; python_version >= "3.11"',
        'old-only==1; python_version < "3.11"',
    ]  # fmt: skip
    assert locked(True, "both==2", "old.only==1") == [
        "both==2", 'new==1; python_version >= "3.11"', 'old.only==1; python_version < "3.11"',
    ]  # fmt: skip


def test_what_neither_has_any_more_goes_once_both_are_locked(locked):
    locked(False, "new==1")
    assert locked(True, "new==1") == ["new==1"]
