"""Pages of docs/results."""

from pathlib import Path


def write(folder: Path) -> None:
    """Pages of the rows in `folder`."""
