"""Documents the settings: as YAML with descriptions, and as a JSON schema for editors."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from llmcfsr_merlin.config.scorer_settings import SCORERS
from llmcfsr_merlin.config.section import Section

_WIDTH = 118


def described(settings: Section) -> str:
    """A recipe with every setting, each below a comment that describes it."""
    return "\n".join(_lines(settings, "")) + "\n"


def _lines(section: Section, indent: str) -> Iterator[str]:
    shown = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _below(name, value, field.description, indent)
        elif isinstance(value, dict):  # the scorers
            yield from _comment(field.description, indent)
            yield f"{indent}{name}:"
            for key, settings in value.items():
                yield from _below(key, settings, None, f"{indent}  ")
        else:
            yield from _comment(field.description, indent)
            yield f"{indent}{name}: {_inline(shown[name])}"


def _below(name: str, section: Section, description: str | None, indent: str) -> Iterator[str]:
    if not indent:
        yield ""
    yield from _comment(description or type(section).__doc__, indent)
    yield f"{indent}{_inline(name)}:" + ("" if type(section).model_fields else " {}")
    yield from _lines(section, f"{indent}  ")


def _inline(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]


def _comment(text: str | None, indent: str) -> list[str]:
    """A description in YAML's words: None becomes null."""
    text = " ".join((text or "").split()).replace("None", "null")
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent), break_on_hyphens=False)]


def json_schema(tree: type[Section]) -> str:
    """The JSON schema of recipes, scorers' settings included, for completion and validation in editors."""
    schema = tree.model_json_schema()
    known = {name: {"anyOf": [kind.model_json_schema(), {"type": "null"}]} for name, kind in SCORERS.items()}
    schema["$defs"]["ModelConfig"]["properties"]["scorers"]["properties"] = known
    schema["patternProperties"] = {r"\.": {}}  # dotted keys: train.epochs
    return json.dumps(schema, indent=2)
