"""Base of every settings section: frozen; unknown keys, wrong types and values out of range are refused.

The text below a setting is its description: `llmcfsr config --explain` and `--schema` show it.
"""

from pydantic import BaseModel, ConfigDict

# One path component: no separator, and not only dots.
NAME = r"^[\w.-]*[\w-][\w.-]*$"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def known_or_own(name: str, known: tuple[str, ...]) -> str:
    """A name in `known`, or `module:Name` from outside the package; ValueError otherwise."""
    if name not in known and ":" not in name:
        raise ValueError(f"expected {', '.join(known)} or module:Name")
    return name
