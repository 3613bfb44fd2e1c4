"""Cleans an item's attributes: damaged HTML, placeholders and overlong descriptions."""

import html
import re
from collections.abc import Iterable, Mapping

# Placeholders that catalogues use for missing values.
_PLACEHOLDERS = frozenset({"", "-", "?", "unknown", "n/a", "none", "null", "nan", "[]", "{}"})
_SCRIPT = re.compile(r"(?is)<(script|style)\b.*?(</\1\s*>|$)")
# A tag, possibly truncated at the end of the text; "<" before a space or digit is a less-than sign.
_TAG = re.compile(r"</?[A-Za-z!][^<>]*(>|$)")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f\u200b-\u200f\ufeff]+")
# Titles of some Amazon crawls hold the page's JavaScript instead of the title.
_JAVASCRIPT = re.compile(r"(\bgetTime\(|\bfunction\s*\(|\bvar \w+ ?=)")


def clean(value: object, max_chars: int) -> str:
    """One value as a single line of text, at most `max_chars` long and cut at a word; "" if there is nothing.

    >>> clean("Shampoo &amp;amp; <b>Conditioner</b> <br", 100)
    'Shampoo & Conditioner'
    """
    if value is None or value != value:  # NaN is the only value unequal to itself
        return ""
    text = str(value)
    # Truncate before cleaning, so that a megabyte of HTML costs no more than a long description.
    text = text[: 8 * max_chars]
    text = html.unescape(html.unescape(text))
    if "<" in text:
        text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    text = _SPACE.sub(" ", text).strip(" ;,")
    if text.lower() in _PLACEHOLDERS or _JAVASCRIPT.search(text):
        return ""
    if len(text) > max_chars:
        text = text[: max_chars + 1].rpartition(" ")[0] or text[:max_chars]
    return text


def join_values(value: object, max_chars: int) -> str:
    """A string or a (nested) list of strings as one clean text; repeated list entries appear once."""
    if isinstance(value, Mapping):
        value = [f"{name} {entry}" for name, entry in value.items()]
    if isinstance(value, str) or not isinstance(value, Iterable):
        return clean(value, max_chars)
    found: dict[str, str] = {}
    for entry in value:
        text = join_values(entry, max_chars)
        if text:
            found.setdefault(text.lower(), text)
    text = ", ".join(found.values())
    return text if len(text) <= max_chars else text[: max_chars + 1].rpartition(" ")[0].rstrip(",") or text[:max_chars]
