"""Settings as flat layers, {"train.epochs": 3}, applied in order: recipe, model preset, overrides."""

import copy
import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmcfsr_merlin.config.old_settings import renamed
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import resource

Settings = dict[str, Any]
_log = logging.getLogger(__name__)
_said: set[str] = set()
_LONGEST_RECIPE = 1 << 20  # bytes
_MOST_NODES = 100_000  # of a recipe with its aliases written out


def flatten(tree: Mapping) -> Settings:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}; dotted keys stay as they are.

    Keys of earlier versions are renamed, with one warning each.
    """
    flat: Settings = {}
    for section, value in tree.items():
        one = {section: value}
        if "." not in section and isinstance(value, Mapping):
            one = {f"{section}.{key}": item for key, item in value.items()}
        for path, item in one.items():
            new = renamed(path, item)
            if new is None:
                flat[path] = item
                continue
            if path not in _said:
                _said.add(path)
                today = ", ".join(f"{name}={json.dumps(one, default=str)}" for name, one in new.items()) or "gone"
                _log.warning("setting %s=%s is from an earlier version, use %s", path, item, today)
            flat |= new
    return flat


def apply(tree: dict, settings: Settings) -> dict:
    """Set paths in a tree, shorter ones first; InputError if one leads through a value that is not a section."""
    for path, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        keys, node = _keys(path), tree
        for key in keys[:-1]:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                raise InputError(f"override {path}={value}: {key} is a value, not a section")
        node[keys[-1]] = copy.deepcopy(value)
    return tree


def _keys(path: str) -> list[str]:
    """Splits a dotted key; a scorer named `package.module:Class` has dots of its own."""
    if path.startswith("model.scorers.") and ":" in path:
        scorer, colon, rest = path.removeprefix("model.scorers.").partition(":")
        name, dot, key = rest.partition(".")
        return ["model", "scorers", f"{scorer}{colon}{name}", *([key] if dot else [])]
    return path.split(".")


def override(text: str) -> Settings:
    """`section.key=value`, the value in YAML, as settings."""
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise InputError(f"expected an override like train.epochs=3, found {text!r}")
    # YAML values cannot begin with these, but a time format does: %d/%m/%Y.
    plain = value[:1] in tuple("%@`")
    parsed = value if plain else _expand(_parse_yaml(value, f"override {text[:80]!r}: the value"))
    return flatten({path.strip(): parsed})


def preset(model: str | Path) -> Settings:
    """A model preset: a path, or the name of one in pipelines/models, with the sections model and train only."""
    return copy.deepcopy(_preset(str(model), os.stat(model).st_mtime_ns if Path(model).is_file() else None))


@cache
def _preset(model: str, _changed: int | None) -> Settings:
    settings = read_recipe(model, "a model file", presets(), "models/")
    other = {path.partition(".")[0] for path in settings} - {"model", "train"}
    if other:
        raise InputError(f"model {model}: expected the sections model and train, found {', '.join(sorted(other))}")
    return settings


def recipes() -> list[str]:
    """Names of the recipes that ship with the project."""
    return sorted(path.stem for path in resource("pipelines").glob("*.yaml"))


def read_recipe(recipe: str | Path, wanted: str, known: list[str], folder: str = "") -> Settings:
    """A YAML file of sections as settings; `~` and environment variables in its values are expanded."""
    path = Path(recipe)
    if not path.suffix and not path.is_file():
        path = resource("pipelines") / f"{folder}{recipe}.yaml"
    if not path.is_file():
        raise InputError(f"expected {wanted} or one of {', '.join(known)}, found {str(recipe)!r}")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return flatten(_expand(tree))


def read_yaml(path: Path) -> Any:
    """Parse a YAML file; InputError if it is not YAML, larger than 1 MiB, or expands to millions of values."""
    size = path.stat().st_size
    if size > _LONGEST_RECIPE:
        raise InputError(f"{path}: expected a YAML file of settings, found {size >> 20:,} MiB: is this a recipe?")
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _parse_yaml(text: str, source: str) -> Any:
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        raise InputError(f"{source} is not YAML: {' '.join(str(error).split())[:300]}") from error
    # An alias repeats a whole tree: ten lines of ten aliases each expand to 10^10 values when copied.
    nodes, waiting = 0, [tree]
    while waiting:
        node = waiting.pop()
        nodes += 1
        if nodes > _MOST_NODES:
            raise InputError(f"{source}: expected settings, found aliases (*name) that stand for over {_MOST_NODES:,}")
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return tree


def _expand(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value) for value in node]
    if isinstance(node, str):
        return os.path.expandvars(os.path.expanduser(node))
    return node
