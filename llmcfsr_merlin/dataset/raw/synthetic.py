"""Synthetic dataset: a beauty shop in the raw format of Amazon 2018, for the demo and the tests, without downloads.

What a user buys next depends on the attributes of what was bought last (the next step of a routine, often of the same
brand) and on the user's taste; popularity follows Zipf's law, so most items are bought only a few times. Text therefore
carries information about rare items that their few interactions do not.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

# A routine: a product of one kind is most often followed by the next kind.
_KINDS = (
    ("Cleanser", "Skin Care", ("Foaming", "Gel", "Micellar", "Cream")),
    ("Toner", "Skin Care", ("Balancing", "Hydrating", "Clarifying", "Calming")),
    ("Serum", "Skin Care", ("Vitamin C", "Retinol", "Peptide", "Niacinamide")),
    ("Moisturizer", "Skin Care", ("Light", "Rich", "Overnight", "Oil-Free")),
    ("Sunscreen SPF 50", "Sun Care", ("Mineral", "Sport", "Tinted", "Invisible")),
    ("Lip Balm", "Makeup", ("Tinted", "Soothing", "Overnight", "Plumping")),
    ("Lipstick", "Makeup", ("Matte", "Satin", "Sheer", "Velvet")),
    ("Mascara", "Makeup", ("Lengthening", "Waterproof", "Volume", "Curling")),
    ("Shampoo", "Hair Care", ("Repair", "Volumizing", "Anti-Dandruff", "Color Care")),
    ("Conditioner", "Hair Care", ("Repair", "Smoothing", "Leave-In", "Color Care")),
    ("Hair Mask", "Hair Care", ("Deep", "Protein", "Overnight", "Curl")),
    ("Perfume", "Fragrance", ("Fresh", "Woody", "Floral", "Oriental")),
)
_BRANDS = (
    "Aurora", "Belmira", "Calanthe", "Dewdrop", "Eventide", "Fernhill", "Glasswing", "Hollybrook", "Isola",
    "Juniper Lane", "Kestrel", "Lumen", "Maravel", "Northbay", "Opaline", "Petalworks", "Quillon", "Rosamund",
    "Silverleaf", "Tidewater",
)  # fmt: skip
_SCENTS = (
    "Rose", "Lavender", "Green Tea", "Coconut", "Vanilla", "Citrus", "Aloe", "Cucumber", "Almond", "Jasmine", "Mint",
    "Honey",
)  # fmt: skip
_START = 1451606400  # 2016-01-01


def write_amazon(folder: Path, users: int, items: int, seed: int = 0) -> tuple[Path, Path]:
    """Write reviews.json.gz and meta.json.gz; returns their paths. The same arguments give the same bytes."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    kind = random.permutation(np.arange(items) % len(_KINDS))
    brand = random.permutation(np.arange(items) % len(_BRANDS))
    popularity = 1 / (1 + random.permutation(items))
    reviews, metadata = folder / "reviews.json.gz", folder / "meta.json.gz"
    _write(metadata, _metadata(kind, brand, random))
    _write(reviews, _reviews(users, kind, brand, popularity, random))
    return reviews, metadata


def _metadata(kind: np.ndarray, brand: np.ndarray, random: np.random.Generator) -> Iterator[dict]:
    for item, (one, maker) in enumerate(zip(kind, brand)):
        noun, section, variants = _KINDS[one]
        variant, scent = random.choice(variants), random.choice(_SCENTS)
        if random.random() < 0.01:
            continue  # real catalogues lack some items
        title = f"{_BRANDS[maker]} {variant} {noun} with {scent}, {random.choice((30, 50, 75, 100, 200))} ml"
        if random.random() < 0.05:
            title = title.replace(" with ", " &amp; ")
        yield {
            "asin": _asin(item),
            "title": title,
            "brand": _BRANDS[maker] if random.random() < 0.9 else "",
            "category": ["Beauty", section, noun],
            "price": f"${random.integers(4, 60)}.99" if random.random() < 0.8 else "",
            "feature": [f"{variant} {noun.lower()}", f"{scent} scent"],
            "description": [f"<b>{_BRANDS[maker]}</b> {variant.lower()} {noun.lower()} for every day."],
            "also_buy": [],
        }


def _reviews(
    users: int, kind: np.ndarray, brand: np.ndarray, popularity: np.ndarray, random: np.random.Generator
) -> Iterator[dict]:
    cells = {
        (one, maker): np.flatnonzero((kind == one) & (brand == maker))
        for one in range(len(_KINDS))
        for maker in range(len(_BRANDS))
    }
    fame = 1 / np.arange(1, len(_BRANDS) + 1) ** 0.8
    by_kind = [np.flatnonzero(kind == one) for one in range(len(_KINDS))]
    for user in range(users):
        taste = random.choice(len(_BRANDS), 3, replace=False, p=fame / fame.sum())
        one, maker = random.integers(len(_KINDS)), random.choice(taste)
        time = _START + int(random.integers(0, 700)) * 86400
        for _ in range(4 + random.geometric(0.2)):
            pool = cells[one, maker]
            if len(pool) == 0 or random.random() < 0.1:
                pool = by_kind[one]
            item = random.choice(pool, p=popularity[pool] / popularity[pool].sum())
            review = {
                "overall": float(random.choice((1, 2, 3, 4, 5), p=(0.05, 0.05, 0.1, 0.2, 0.6))),
                "reviewerID": f"U{user:07d}",
                "asin": _asin(item),
                "unixReviewTime": time,
            }
            if random.random() < 0.1:
                review["style"] = {"Size:": " 50 ml"}
            yield review
            if random.random() < 0.005:
                yield review  # repeated rows occur
            time += int(random.integers(0, 40)) * 86400  # several on one day occur
            step = random.random()
            one = (one + 1) % len(_KINDS) if step < 0.7 else one if step < 0.8 else random.integers(len(_KINDS))
            maker = brand[item] if random.random() < 0.65 else random.choice(taste)


def _asin(item: int) -> str:
    return f"B{item:09d}"


def _write(path: Path, records: Iterable[dict]) -> None:
    # No name and time in the gzip header, so that equal content gives equal bytes.
    with open(path, "wb") as stream, gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed:
        for record in records:
            packed.write(json.dumps(record).encode() + b"\n")
