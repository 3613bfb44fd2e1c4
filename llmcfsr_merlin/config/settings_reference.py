"""The settings as a page of the documentation: a table per section, from the settings themselves."""

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from llmcfsr_merlin.config.schema import Schema
from llmcfsr_merlin.config.scorer_settings import SCORERS
from llmcfsr_merlin.config.section import Section

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def settings_reference() -> str:
    """Markdown: every section with its settings, their types, defaults and descriptions."""
    parts = [
        "# Settings\n",
        "Every setting of a recipe with its default. `llmcfsr config RECIPE --explain` prints those of a recipe, "
        "`--set section.key=value` overrides one, and `llmcfsr config --schema` is the JSON schema for editors.\n",
    ]
    root = {name: field for name, field in Schema.model_fields.items() if not _section(field)}
    parts += ["## Recipe\n", *_table(root, "")]
    for name, field in Schema.model_fields.items():
        if section := _section(field):
            parts += _chapter(section, name)
    for name, settings in SCORERS.items():
        parts += _chapter(settings, f"model.scorers.{name}")
    return "\n".join(parts) + "\n"


def _chapter(section: type[Section], path: str) -> Iterator[str]:
    yield f"## {path}\n"
    yield f"{_words(section.__doc__)}\n"
    own = {name: field for name, field in section.model_fields.items() if not _section(field)}
    yield from _table(own, f"{path}.") if own else ["No settings.\n"]
    for name, field in section.model_fields.items():
        if below := _section(field):
            yield from _chapter(below, f"{path}.{name}")


def _table(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        bounds = [
            f"{sign} {getattr(rule, key)}"
            for rule in field.metadata
            for key, sign in _BOUNDS.items()
            if hasattr(rule, key)
        ]
        kind = ", ".join([_type(field.annotation), *bounds])
        yield f"| `{prefix}{name}` | {cell(kind)} | {cell(_default(field))} | {cell(_words(field.description))} |"
    yield ""


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _type(kind: Any) -> str:
    """A type in YAML's words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if hasattr(kind, "__metadata__"):  # Annotated
        return _type(arguments[0])
    return {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}.get(kind, "text")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, dict):
        return "see `config`" if value else "`{}`"
    text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]
    return f"`{text}`"


def _words(text: str | None) -> str:
    return " ".join((text or "").split()).replace("None", "null")


def cell(text: str) -> str:
    """Escaped for a table: `|` everywhere, `<` and `*` outside of code."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
