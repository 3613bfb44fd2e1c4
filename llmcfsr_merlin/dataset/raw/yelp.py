"""Yelp Open Dataset: business and review JSON lines of any year."""

import re
from collections.abc import Mapping

from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.dataset.raw.fields.values import Attribute, as_list, as_pairs, as_text
from llmcfsr_merlin.dataset.raw.records import Layout

REVIEWS = Layout(
    "Yelp reviews",
    user=("user_id",),
    item=("business_id",),
    time=("date",),
    rating=("stars",),
    hint=lambda found: (
        ": this looks like Amazon, set data.format=amazon"
        if {"asin", "parent_asin"} & found
        else ": this looks like the business file, give it as data.items"
        if "business_id" in found
        else ": set data.format=table and data.columns for another layout"
    ),
)
ITEM_FIELDS = ("business_id",)
COLUMNS = {TITLE: str, "categories": list, "city": str, "state": str, "attributes": list, "is_open": str,
           "stars": str, "review_count": str}  # fmt: skip


def attributes(record: Mapping) -> dict[str, Attribute]:
    """The items row of one business. Categories came as a list until 2017, as one string since."""
    categories = record.get("categories")
    if isinstance(categories, str):
        categories = re.split(r",\s+", categories)
    row = {name: as_text(record.get(name)) for name in ("city", "state", "is_open", "stars", "review_count")}
    return {
        ITEM: as_text(record.get("business_id")),
        TITLE: as_text(record.get("name")),
        "categories": as_list(categories),
        "attributes": as_pairs(record.get("attributes")),
        **row,
    }
