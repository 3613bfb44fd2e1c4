"""Prompts: the text that a language model reads for an item, one versioned template per dataset.

An item's attributes become `label: value; label: value`. Attributes that reveal an item's popularity (review count,
average stars, sales rank) leak what the recommender must predict and are excluded by default.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.dataset.raw.fields.clean_text import join_values
from llmcfsr_merlin.runtime.errors import InputError

POPULARITY = frozenset(
    {"review_count", "stars", "average_rating", "rating_number", "rating", "sales_rank", "salesrank", "rank", "likes"}
)
# Ids, links and coordinates carry no meaning as text.
_NO_TEXT = frozenset(
    {ITEM, "asin", "parent_asin", "business_id", "s3rec_id", "latitude", "longitude", "url", "image", "images", "imurl",
     "imageurl", "imageurlhighres", "videos", "also_buy", "also_bought", "also_view", "also_viewed", "similar_item",
     "related", "bought_together", "tech1", "tech2", "date", "hours", "postal_code"}
)  # fmt: skip
SHORT, LONG = 300, 1200  # most characters of a name and of a description

Attributes = list[tuple[str, str]]
"""(label, value) pairs of one item, in the template's order, without missing ones."""


@dataclass(frozen=True)
class Template:
    """Which attributes a prompt contains, in which order and under which label.

    Short, informative attributes come first: prompts are truncated at the end.
    Empty `fields`: every column of the table under its own name.
    """

    name: str
    version: int
    fields: tuple[tuple[str, str, int], ...] = ()  # (column, label, characters kept)

    @property
    def id(self) -> str:
        """Name and version as the manifest records them."""
        return f"{self.name}-v{self.version}"


_AMAZON = (
    ("title", "title", SHORT),
    ("brand", "brand", SHORT),
    ("categories", "categories", SHORT),
    ("price", "price", 40),
    ("features", "features", LONG),
    ("description", "description", LONG),
)
TEMPLATES = {
    template.name: template
    for template in (
        Template("generic", 1),
        Template("beauty", 1, _AMAZON),
        # Fashion has short metadata; features hold noise such as dates and sizes, so they come after the description.
        Template("fashion", 1, (*_AMAZON[:4], _AMAZON[5], _AMAZON[4])),
        Template(
            "yelp",
            1,
            (
                ("title", "name", SHORT),
                ("categories", "categories", SHORT),
                ("city", "city", 80),
                ("state", "state", 40),
                ("attributes", "attributes", LONG),
                ("is_open", "open", 10),
                ("stars", "stars", 10),
                ("review_count", "review count", 10),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Prompter:
    """Turns rows of the items table into prompts. `popularity` includes the leaking attributes."""

    template: Template
    instruction: str = ""
    popularity: bool = False

    @classmethod
    def of(cls, name: str, instruction: str = "", popularity: bool = False) -> "Prompter":
        """The prompter of a named template; InputError if there is no such template."""
        if name not in TEMPLATES:
            raise InputError(f"expected a template out of {', '.join(TEMPLATES)}, found {name!r}")
        return cls(TEMPLATES[name], instruction, popularity)

    def attributes(self, row: Mapping[str, object]) -> Attributes:
        """The item's clean attributes; an empty list if it has none."""
        fields = self.template.fields or tuple(
            (column, column.replace("_", " "), SHORT if column in ("title", "brand", "categories") else LONG)
            for column in sorted(row, key=lambda column: _GENERIC_ORDER.get(column, 1))
            if column.lower() not in _NO_TEXT
        )
        found = []
        for column, label, kept in fields:
            if column.lower() in POPULARITY and not self.popularity:
                continue
            if text := join_values(row.get(column), kept):
                found.append((label, text))
        return found

    def render(self, attributes: Attributes) -> str:
        """`instruction` + `label: value; label: value`; "" without attributes."""
        if not attributes:
            return ""
        body = "; ".join(f"{label}: {value}" for label, value in attributes)
        return f"{self.instruction}\n{body}" if self.instruction else body

    def __call__(self, row: Mapping[str, object]) -> str:
        return self.render(self.attributes(row))


# In a generic table informative short columns come first and the description last, the others in table order.
_GENERIC_ORDER = {"title": -3, "brand": -2, "categories": -1, "features": 2, "description": 3}


def augment(attributes: Attributes, drop: float, rng: random.Random) -> Attributes:
    """A shuffled copy with a share `drop` of the attributes removed, at least one kept (LLMEmb, arXiv 2409.19925).

    The count n * drop is rounded up or down at random, so that its mean is exact: LLMEmb's int(n * drop) would never
    drop anything from items of two attributes.
    """
    if not attributes:
        return []
    expected = len(attributes) * drop
    dropped = int(expected) + (rng.random() < expected - int(expected))
    shuffled = rng.sample(attributes, len(attributes))
    return shuffled[: max(1, len(attributes) - dropped)]


def show(rows: Sequence[Mapping[str, object]], prompter: Prompter, drop: float = 0.4, seed: int = 0) -> str:
    """The prompts of some items and two augmented copies of each, for inspection."""
    lines = []
    for row in rows:
        attributes = prompter.attributes(row)
        lines.append(f"{row[ITEM]} ({prompter.template.id})")
        lines.append("  prompt: " + (prompter.render(attributes) or "none (no attribute: it gets the mean vector)"))
        for copy in (1, 2):
            rng = random.Random(f"{seed}/{row[ITEM]}/{copy}")
            lines.append(f"  copy {copy}: " + prompter.render(augment(attributes, drop, rng)))
    return "\n".join(lines)
