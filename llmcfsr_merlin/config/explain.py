"""Renders pydantic's errors in one line: which key, what was expected, what was found."""

import difflib

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def explain(error: ValidationError, section: type[BaseModel], prefix: str = "") -> str:
    """All errors of a section's validation; prefix: the section's path, ending with a dot."""
    return "; ".join(_line(one, section, prefix) for one in error.errors())


def _line(error: ErrorDetails, section: type[BaseModel], prefix: str) -> str:
    where = prefix + ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            below = section.model_fields[str(part)].annotation
            assert isinstance(below, type) and issubclass(below, BaseModel), "only sections refuse keys"
            section = below
        close = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(section.model_fields)}"
        return f"unknown key {where} ({hint})"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error.get("input"), dict) and "ctx" in error:  # our validators name what was found themselves
        return f"{where.rstrip('.')}: {message}" if where else message
    return f"{where.rstrip('.') or 'settings'}: {message}, found {error.get('input')!r}"
