"""What every section of the settings is: frozen, with its unknown keys, wrong types and values out of range refused.

The text below a setting is its description: `llmcfsr config --explain` and `--schema` show it.
"""

from pydantic import BaseModel, ConfigDict

# One component of a path: no separator, and something beside dots.
NAME = r"^[\w.-]*[\w-][\w.-]*$"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def known_or_own(name: str, known: tuple[str, ...]) -> str:
    """A name out of `known`, or `module:Name` of one's own; ValueError for another."""
    if name not in known and ":" not in name:
        raise ValueError(f"expected {', '.join(known)} or module:Name")
    return name
