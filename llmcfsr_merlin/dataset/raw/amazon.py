"""Amazon reviews and metadata of 2014 (metadata as Python literals), 2018 and 2023 (JSON lines).

Sources: J. McAuley's product data (2014), Ni et al. 2019 (2018), Hou et al. 2024 (2023).
"""

from collections.abc import Mapping

from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.dataset.raw.fields.values import Attribute, as_list, as_text
from llmcfsr_merlin.dataset.raw.records import Layout


def _hint(found: set[str]) -> str:
    if "business_id" in found:
        return ": this looks like Yelp, set data.format=yelp"
    if {"title", "brand"} & found and "asin" in found:
        return ": this looks like metadata, give it as data.items"
    return ": set data.format=table and data.columns for another layout"


# 2014 and 2018, then 2023. Variants of a product share parent_asin, which is what 2023's metadata are listed by.
REVIEWS = Layout(
    "Amazon reviews",
    user=("reviewerID", "user_id"),
    item=("parent_asin", "asin"),
    time=("unixReviewTime", "timestamp", "reviewTime"),
    rating=("overall", "rating"),
    hint=_hint,
)
ITEM_FIELDS = ("parent_asin", "asin")
COLUMNS = {TITLE: str, "brand": str, "categories": list, "price": str, "features": list, "description": list}


def attributes(record: Mapping) -> dict[str, Attribute]:
    """The items row of one metadata record."""
    details = record.get("details")
    brand = record.get("brand") or record.get("store")
    if not brand and isinstance(details, Mapping):
        brand = details.get("Brand")
    categories = as_list(record.get("categories") or record.get("category") or record.get("main_category"))
    return {
        ITEM: as_text(record.get("parent_asin") or record.get("asin")),
        TITLE: as_text(record.get("title")),
        "brand": as_text(brand),
        "categories": categories,
        "price": as_text(record.get("price")),
        "features": as_list(record.get("features") or record.get("feature")),
        "description": as_list(record.get("description")),
    }
