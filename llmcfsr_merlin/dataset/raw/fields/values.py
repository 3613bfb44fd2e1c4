"""Converts attribute values of any shape to strings and lists of strings, as in the items table."""

import json
import math
import re
from collections.abc import Mapping

from llmcfsr_merlin.dataset.raw.fields.ids import clean_id, unwrapped
from llmcfsr_merlin.runtime.literals import literal

Attribute = str | list[str] | None


def as_text(value: object) -> str | None:
    """A value of a JSON object as text; None if there is none (None, NaN, infinity).

    Integers written as floats lose their ".0", MongoDB's {"$oid": ...} and {"$date": ...} are unwrapped, other objects
    and lists are JSON. Lone surrogates, which no UTF-8 can hold, become '?'.
    """
    value = unwrapped(value)
    if value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, (bytes, bytearray)):
        value = clean_id(value)
    if isinstance(value, (Mapping, list, tuple)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value).encode("utf-8", "replace").decode()


def as_list(value: object) -> list[str] | None:
    """A string, number, mapping or (nested) list as a flat list without repeats; None if nothing is left.

    >>> as_list([["CDs & Vinyl", "Pop"], ["CDs & Vinyl", "Rock"]])
    ['CDs & Vinyl', 'Pop', 'Rock']
    """
    if isinstance(value, Mapping):
        return as_pairs(value)
    found: dict[str, None] = {}
    for entry in value if isinstance(value, (list, tuple, set)) else [value]:
        if isinstance(entry, (list, tuple, set, Mapping)):
            found.update(dict.fromkeys(as_list(entry) or ()))
        elif (text := as_text(entry)) and text.strip():
            found[text] = None
    return list(found) or None


def as_pairs(value: object) -> list[str] | None:
    """A mapping as `name: value` texts; what is true goes by its name alone, what is false or absent is left out.

    Yelp writes nested mappings as Python literals:

    >>> as_pairs({"Ambience": "{'casual': True, 'hipster': False}", "WiFi": "u'free'", "HappyHour": "True"})
    ['Ambience: casual', 'Wi Fi: free', 'Happy Hour']
    """
    if not isinstance(value, Mapping):
        return as_list(value) if value else None
    found = []
    for name, entry in value.items():
        label = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name).replace("_", " "))
        if isinstance(entry, str):
            entry = _literal(entry)
        if isinstance(entry, Mapping):
            entry = as_pairs(entry)
        if entry is True:
            found.append(label)
        elif entry not in (None, False, "", "none", "no") and (texts := as_list(entry)):
            found.append(f"{label}: {', '.join(texts)}")
    return found or None


def as_attribute(value: object) -> Attribute:
    """A list if the value is one, else text."""
    if isinstance(value, (list, tuple, set, Mapping)):
        return as_list(value)
    return as_text(value)


def _literal(text: str) -> object:
    if text[:1] in "{u'\"TFN":
        try:
            return literal(text)
        except (ValueError, SyntaxError):
            return text
    return text
