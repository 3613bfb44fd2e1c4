"""Rows of a log as text, and what ingest makes of a text."""

import tempfile
from pathlib import Path

from tests.unit.dataset.world import run

HEAD = "user_id,item_id,timestamp"
ROWS = [(f"u{n % 3}", f"i{n}", 1_500_000_000 + n) for n in range(6)]
ORDER = [item for _, item, _ in ROWS]


def text(delimiter=",", header=HEAD, tail="", end="\n") -> str:
    """The rows as delimited text; tail: after each row."""
    lines = [header.replace(",", delimiter)] if header else []
    return end.join(lines + [delimiter.join(map(str, row)) + tail for row in ROWS]) + end


def ingested(tmp_path, content, name="log.csv", block=1 << 20, items=None, **settings):
    """Counts, interactions and items of a log (and metadata) in a folder of its own."""
    tmp_path = Path(tempfile.mkdtemp(dir=tmp_path))
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if items is not None:
        (tmp_path / "items").write_bytes(items if isinstance(items, bytes) else items.encode())
        settings["items"] = str(tmp_path / "items")
    return run(tmp_path / "out", 1, block, interactions=str(path), **settings)
