"""A small log in the raw formats and what must come out of it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.names import INTERACTIONS, ITEM, ITEMS, RATING, ROW, SUBSECOND, TIME, USER
from llmcfsr_merlin.dataset.raw.ingest import ingest

# user, item, time, rating: what stands in the log, in its order.
LOG = [
    ("ada", "A1", 1_441_324_800, 5.0),
    ("bob", "A1", 1_441_324_900, 2.0),
    ("ada", "A2", 1_441_325_000, 4.0),
    ("ada", "A2", 1_441_325_000, 4.0),
    ("cy", "A3", 1_472_688_000, 3.0),
]
TITLES = {"A1": "Rose & Mint Balm", "A2": "Citrus Soap", "A3": None}


def reviews_2018() -> list[str]:
    """With the quirks: style, vote and image on some rows, entities in the text, fields in another order."""
    rows = [
        {"overall": r, "verified": True, "reviewerID": u, "asin": i, "reviewText": 'a &amp; "b"', "unixReviewTime": t}
        for u, i, t, r in LOG
    ]
    rows[1] |= {"style": {"Size:": " 7.0 oz"}, "vote": "3"}
    rows[2] = {"image": ["http://x"], **dict(reversed(rows[2].items()))}
    return [json.dumps(row) for row in rows]


def metadata_2018() -> list[str]:
    return [
        json.dumps(
            {
                "category": ["Beauty", "Lips", "Lips"],
                "title": "<span>Rose &amp;amp; Mint\n Balm</span>",
                "brand": "Aurora",
                "price": "$5.00",
                "feature": ["Soft"],
                "description": ["For <b>lips</b>"],
                "asin": "A1",
            }
        ),
        json.dumps({"title": "Citrus Soap", "category": [], "description": [], "asin": "A2", "brand": "", "price": ""}),
        json.dumps({"title": "Not in the log", "asin": "A9"}),
        json.dumps({"title": "Citrus Soap, again", "asin": "A2"}),
    ]


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    """Lines as a file, gzipped where the name ends so."""
    data = ("\n".join(lines) + end).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def read(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions and items as written; text as objects, None where it is missing, also with pandas 3."""
    frames = [pq.read_table(out / name).to_pandas() for name in (INTERACTIONS, ITEMS)]
    for frame in frames:
        for name in frame.columns[frame.dtypes == "str"]:
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return tuple(frames)


def run(out: Path, workers: int = 1, block: int = 1 << 20, **settings) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """Ingest and read: counts, interactions, items."""
    out.mkdir(parents=True, exist_ok=True)
    counts = ingest(DataConfig(**settings), out, workers=workers, block=block)
    return counts, *read(out)


def rows(interactions: pd.DataFrame) -> list[tuple]:
    """(user, item, time, rating) in the order of the files; ROW must rise."""
    assert interactions[ROW].is_monotonic_increasing and interactions[ROW].is_unique
    return list(interactions[[USER, ITEM, TIME, RATING]].itertuples(index=False, name=None))


def random_log(rows: int = 400) -> pd.DataFrame:
    """Interactions at random: 20 users, 30 items, many equal times."""
    random = np.random.default_rng(0)
    return pd.DataFrame({
        USER: [f"u{x}" for x in random.integers(0, 20, rows)], ITEM: [f"i{x}" for x in random.integers(0, 30, rows)],
        TIME: random.integers(0, 50, rows), SUBSECOND: random.choice([0, 0.5, 0.75], rows), ROW: np.arange(rows),
        "rating": np.float32(5),
    })  # fmt: skip
