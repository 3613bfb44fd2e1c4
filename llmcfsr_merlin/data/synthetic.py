"""A shop that does not exist, in the raw format of Amazon 2018: reviews and metadata as gzipped JSON lines.

What comes next depends on attributes: a user keeps to a few brands, and the kinds of product follow one another (a
cleanser, then a toner). Popularity has a long tail, so that many items have 1 to 5 interactions and only their
attributes tell who wants them. The quirks of real files are in it too.
"""

import gzip
import json
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

REVIEWS, METADATA = "reviews.json.gz", "metadata.json.gz"
_START = 1_420_070_400  # 2015-01-01
_DAY = 86_400

_BRANDS = (
    "Aurora", "Belle Vale", "Cedar & Salt", "Dewfall", "Elmwood", "Fjord", "Glimmer", "Harbour", "Isola",
    "Juniper Lane", "Kestrel", "Lumen",
)  # fmt: skip
# Routine: kinds in the order in which people buy them.
_ROUTINES = {
    "Skin Care": ("Cleanser", "Toner", "Serum", "Moisturizer", "Sunscreen"),
    "Makeup": ("Primer", "Foundation", "Blush", "Mascara", "Lip Balm"),
    "Hair Care": ("Shampoo", "Conditioner", "Hair Mask", "Hair Oil", "Styling Cream"),
    "Bath & Body": ("Bath Salt", "Body Wash", "Body Scrub", "Body Lotion", "Hand Cream"),
}
_EFFECTS = ("Hydrating", "Brightening", "Soothing", "Repairing", "Purifying", "Nourishing", "Firming", "Calming")
_SCENTS = ("Rose", "Citrus", "Lavender", "Green Tea", "Coconut", "Vanilla", "Sea Mineral", "Almond", "Honey", "Mint")
_SIZES = ("30 ml", "50 ml", "100 ml", "250 ml", "Travel Size", "Pack of 2")


@dataclass(frozen=True)
class _Item:
    asin: str
    brand: int
    department: str
    step: int
    scent: str
    title: str
    weight: float


def write_synthetic(folder: Path, *, users: int, items: int, seed: int = 0) -> tuple[Path, Path]:
    """Write REVIEWS and METADATA into folder; the same bytes for the same arguments. Returns the two paths.

    Users buy 3 to 30 items each, 8 on average.
    """
    draw = random.Random(f"{seed}/{users}/{items}")
    catalogue = _catalogue(draw, items)
    reviews, metadata = Path(folder) / REVIEWS, Path(folder) / METADATA
    _write(metadata, [line for item in catalogue for line in _metadata(draw, item)])
    _write(reviews, _reviews(draw, catalogue, users))
    return reviews, metadata


def _catalogue(draw: random.Random, count: int) -> list[_Item]:
    found, cells = [], {}
    for _ in range(count):
        # Popular brands have more products, as they have more buyers.
        brand = draw.choices(range(len(_BRANDS)), [1 / (rank + 8) for rank in range(len(_BRANDS))])[0]
        department = draw.choice(list(_ROUTINES))
        step = draw.randrange(len(_ROUTINES[department]))
        cell = cells[brand, department, step] = cells.get((brand, department, step), 0) + 1
        kind = _ROUTINES[department][step]
        scent = draw.choice(_SCENTS)
        words = [_BRANDS[brand], draw.choice(_EFFECTS), scent, kind]
        title = " ".join(words) + (f", {draw.choice(_SIZES)}" if draw.random() < 0.6 else "")
        asin = "B0" + "".join(draw.choices("0123456789ABCDEFGHJKLMNPQRSTUVWXYZ", k=8))
        found.append(_Item(asin, brand, department, step, scent, title, cell**-2.0 * draw.lognormvariate(0, 0.8)))
    return found


def _reviews(draw: random.Random, catalogue: list[_Item], users: int) -> list[str]:
    shelves: dict[tuple[int, str, int], list[_Item]] = {}
    for item in catalogue:
        shelves.setdefault((item.brand, item.department, item.step), []).append(item)
    everything = list(accumulate(item.weight for item in catalogue))
    brand_weights = [1 / (rank + 1) for rank in range(len(_BRANDS))]
    events = []
    for _ in range(users):
        name = "A" + "".join(draw.choices("0123456789ABCDEFGHJKLMNPQRSTUVWXYZ", k=13))
        brands = draw.choices(range(len(_BRANDS)), brand_weights, k=2)
        scent, department, step = draw.choice(_SCENTS), draw.choice(list(_ROUTINES)), draw.randrange(5)
        when = _START + draw.randrange(900) * _DAY
        bought: set[str] = set()
        for _ in range(min(30, 3 + int(draw.expovariate(1 / 5.5)))):
            brand = brands[draw.random() < 0.3]
            shelf = shelves.get((brand, department, step))
            if shelf and draw.random() < 0.9:
                weights = [item.weight * (8 if item.scent == scent else 1) for item in shelf]
                item = draw.choices(shelf, weights)[0]
            else:
                item = draw.choices(catalogue, cum_weights=everything)[0]
            if item.asin not in bought or draw.random() < 0.1:
                events.append((when, name, item))
                bought.add(item.asin)
            when += draw.choice((0, 1, 3, 7, 20, 45)) * _DAY
            if draw.random() < 0.8:
                step = (step + 1) % 5
            else:
                department, step = draw.choice(list(_ROUTINES)), draw.randrange(5)
    # As in the real files, reviews stand by item and not by time.
    order = {item.asin: place for place, item in enumerate(catalogue)}
    events.sort(key=lambda event: (order[event[2].asin], event[0], event[1]))
    lines = []
    for when, name, item in events:
        lines.append(_review(draw, when, name, item))
        if draw.random() < 0.004:  # the crawl has some rows twice
            lines.append(lines[-1])
    return lines


def _review(draw: random.Random, when: int, name: str, item: _Item) -> str:
    kind = _ROUTINES[item.department][item.step].lower()
    stars = draw.choices((5.0, 4.0, 3.0, 2.0, 1.0), (55, 22, 11, 6, 6))[0]
    days = (when - _START) // _DAY
    record: dict = {"overall": stars, "verified": draw.random() < 0.9}
    record |= {"reviewTime": f"{1 + days // 30 % 12:02d} {1 + days % 28}, {2015 + days // 365}", "reviewerID": name}
    record |= {"asin": item.asin}
    if draw.random() < 0.4:
        record["style"] = {"Size:": f" {draw.choice(_SIZES)}"}
    if draw.random() < 0.1:
        record["vote"] = str(draw.randint(2, 40))
    if draw.random() < 0.05:
        record["image"] = [f"https://images.example/{item.asin}.jpg"]
    if draw.random() < 0.995:
        record["reviewText"] = f'{"Lovely" if stars > 3 else "Not my"} {kind}, "{item.scent.lower()}" &amp; all.'
    record |= {"summary": "Five Stars" if stars == 5 else kind, "unixReviewTime": when}
    return json.dumps(record)


def _metadata(draw: random.Random, item: _Item) -> list[str]:
    if draw.random() < 0.02:  # metadata that were never crawled
        return []
    kind, brand = _ROUTINES[item.department][item.step], _BRANDS[item.brand]
    title, chance = item.title, draw.random()
    if chance < 0.02:
        title = f'<span id="productTitle" class="a-size-large">{title}</span>'
    elif chance < 0.05:
        title = title.replace(" & ", " &amp;amp; ").replace(",", " &ndash;")
    elif chance < 0.06:
        title = "var aPageStart = (new Date()).getTime(); <b>"
    words = item.title.partition(",")[0].removeprefix(brand).split()
    record = {
        "category": ["Beauty & Personal Care", item.department, kind],
        "description": [f"{' '.join(words)} by {brand} for your {item.department.lower()} routine.<br />"]
        if draw.random() < 0.7
        else [],
        "title": title,
        "also_buy": [],
        "image": [],
        "brand": brand if draw.random() < 0.92 else "",
        "feature": [f"With {words[1].lower()}"] if draw.random() < 0.3 else [],
        "rank": f"{draw.randrange(100, 900_000):,}inBeauty&PersonalCare(",
        "price": f"${draw.randrange(4, 60)}.{draw.choice((0, 49, 95, 99)):02d}" if draw.random() < 0.7 else "",
        "asin": item.asin,
    }
    return [json.dumps(record)] * (2 if draw.random() < 0.01 else 1)


def _write(path: Path, lines: list[str]) -> None:
    """Without a newline at the end, as some real files are; without a time stamp, so that bytes repeat."""
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as stream:
        stream.write("\n".join(lines).encode())
