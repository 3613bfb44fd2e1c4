"""One tree of frozen settings (settings.py), read from a recipe.

`Config.load("pipelines/beauty.yaml", ["train.epochs=3"])` reads a recipe and applies overrides. Unknown keys, wrong
types and values out of range are errors that name the key. Paths in a recipe may use `~` and environment variables
(`${LLMCFSR_DATA}/...`); relative paths are relative to the current folder.
"""

import copy
import dataclasses
import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from llmcfsr_merlin.config.schema import (
    CLOSED_FORM,
    NAME,
    ClusterConfig,
    DataConfig,
    EmbedConfig,
    EvaluateConfig,
    ModelConfig,
    PrepareConfig,
    Section,
    ServeConfig,
    TrainConfig,
    models,
)
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import RECORD, resource
from llmcfsr_merlin.runtime.stage import write_json

_SECTIONS = ("data", "prepare", "train")  # what a record has, whichever version wrote it
_LONGEST_RECIPE = 1 << 20  # bytes
_MOST_NODES = 100_000  # of a recipe with its aliases written out
_PRESET = "model_laid_over"  # in RECORD


@dataclass(frozen=True)
class Preset:
    """What a model's file put into a configuration, as JSON values. laid: section -> key -> its value; under: the same
    keys -> what the caller had given there, if anything."""

    laid: dict[str, dict]
    under: dict[str, dict]

    @classmethod
    def of(cls, config: "Config", preset: dict, below: dict) -> "Preset":
        """Of a configuration that `preset` was laid over; `below`: the tree without it."""
        tree = config.model_dump(mode="json")
        laid = {section: {key: tree[section][key] for key in keys} for section, keys in preset.items()}
        given = {section: below.get(section) or {} for section in preset}
        under = {s: {key: given[s][key] for key in keys if key in given[s]} for s, keys in preset.items()}
        return cls(laid, under)

    def without(self, settings: Iterable[str]) -> "Preset":
        """The preset but for settings ("train.loss", or a whole section) that the caller gave since."""
        given = set(settings)
        laid = {
            section: {key: value for key, value in keys.items() if not {section, f"{section}.{key}"} & given}
            for section, keys in self.laid.items()
        }
        return Preset(laid, self.under)

    def taken_off(self, tree: dict) -> dict:
        """A configuration's tree (JSON values) without what the preset laid over it and nobody changed since."""
        tree = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in tree.items()}
        for section, keys in self.laid.items():
            for key, value in keys.items():
                if tree[section].get(key) == value:
                    del tree[section][key]
                    if key in self.under.get(section, {}):
                        tree[section][key] = self.under[section][key]
        return tree


class Config(Section):
    """The whole configuration; `name` is also the default run directory, runs/<name>."""

    name: str = Field("run", pattern=NAME, max_length=100)
    data: DataConfig = DataConfig()
    cluster: ClusterConfig = ClusterConfig()
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    _preset: "Preset | None" = PrivateAttr(None)
    """The model laid over these settings; None: they were given whole, by a recipe or in code."""

    @classmethod
    def load(
        cls,
        recipe: str | Path | None = None,
        overrides: tuple[str, ...] | list[str] = (),
        model: str | Path | None = None,
    ) -> "Config":
        """Read a recipe (a path, or the name of one in pipelines/), lay a model over it, apply `section.key=value`.

        model: a path, or the name of one in pipelines/models; its sections `model` and `train` win over the recipe's.
        Raises InputError with one line that names the key, what was expected and what was found.
        """
        tree = _expand(_read_recipe(recipe, "a recipe file", recipes())) if recipe else {}
        preset = _expand(_read_model(model)) if model is not None else {}
        own = _laid_over(tree, preset)
        for override in overrides:
            _apply(tree, override)
            _apply(own, override)
        config = cls._validate(_expand(own), recipe or "settings")
        if model is not None:
            config._preset = Preset.of(config, preset, _expand(tree))
        return config

    def with_model(self, model: str | Path) -> "Config":
        """These settings with another model laid over them, as load(..., model) lays it over a recipe: a baseline's.

        model: a path, or the name of one in pipelines/models. Of the sections `model` and `train`, the settings that
        the model's file names are taken from it. Those that the present model's file names go back to what the caller
        had given before that model was laid over (else to the defaults), unless the caller changed them since. All
        others, and all other sections, stay: epochs, hidden size, seed. It does not matter whether the settings come
        from a recipe, from code, from with_settings, from another with_model or from a run (recorded). Settings that no
        model was laid over are taken to hold the shipped model of their model.name.
        """
        tree = self._without_model()
        preset = _expand(_read_model(model))
        config = self._validate(_laid_over(tree, preset), model)
        config._preset = Preset.of(config, preset, tree)
        return config

    def with_settings(self, settings: dict[str, object]) -> "Config":
        """These settings with some changed, {"model.dropout": 0.5}; InputError where one does not fit."""
        tree = self.model_dump()
        for path, value in settings.items():
            section, _, key = path.partition(".")
            if key:
                tree.setdefault(section, {})[key] = value
            else:
                tree[section] = value
        config = self._validate(tree, "settings")
        config._preset = self._laid().without(settings)
        return config

    def _laid(self) -> "Preset":
        if self._preset is not None:
            return self._preset
        return Preset.of(self, _read_model(self.model.name) if self.model.name in models() else {}, {})

    def _without_model(self) -> dict:
        """The tree as the caller gave it, before the present model was laid over it."""
        return self._laid().taken_off(self.model_dump(mode="json"))

    @property
    def neural_baselines(self) -> list[str]:
        """Those of evaluate.baselines that are trained: the models of pipelines/models."""
        return [name for name in self.evaluate.baselines if name not in (*CLOSED_FORM, self.model.name)]

    @property
    def needs_vectors(self) -> bool:
        """Whether the model or one of its neural baselines reads semantic vectors."""
        names = self.neural_baselines
        return self.model.needs_vectors or any(self.with_model(name).model.needs_vectors for name in names)

    def record(self, run_dir: Path) -> None:
        """Write the settings into the run directory, where recorded() finds them.

        InputError where a file of that name there is of something else.
        """
        path = Path(run_dir) / RECORD
        if path.is_file() and not all(f'"{section}"'.encode() in path.read_bytes() for section in _SECTIONS):
            raise InputError(f"{path} is no record of this project: move it away or choose another --run")
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        tree = self.model_dump(mode="json")
        write_json(Path(run_dir) / RECORD, tree | {_PRESET: dataclasses.asdict(self._laid())})

    @classmethod
    def recorded(cls, run_dir: str | Path) -> "Config":
        """The settings that a run directory was made with; InputError where it is none."""
        path = Path(run_dir) / RECORD
        if not path.is_file():
            raise InputError(f"expected a run directory, found no {path}: `llmcfsr run RECIPE --run {run_dir}` first")
        try:
            tree = json.loads(path.read_text())
            preset = tree.pop(_PRESET, None)
            config = cls._validate(tree, path)
            config._preset = preset and Preset(**preset)
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is not readable ({error}): run a stage of its recipe again") from error
        return config

    @classmethod
    def _validate(cls, tree: dict, source: str | Path) -> "Config":
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise InputError(f"{source}: " + "; ".join(map(_explain, error.errors()))) from error


def recipes() -> list[str]:
    """Names of the recipes that ship with the project."""
    return sorted(path.stem for path in resource("pipelines").glob("*.yaml"))


def _read_model(model: str | Path) -> dict:
    tree = _read_recipe(model, "a model file", models(), "models/")
    if not set(tree) <= {"model", "train"}:
        raise InputError(f"model {model}: expected the sections model and train, found {', '.join(tree)}")
    return tree


def _laid_over(tree: dict, upper: dict) -> dict:
    """A new tree in which the settings of `upper` stand in the place of those of `tree`."""
    tree = copy.deepcopy(tree)
    return tree | {section: {**(tree.get(section) or {}), **settings} for section, settings in upper.items()}


def _read_recipe(recipe: str | Path, wanted: str, known: list[str], folder: str = "") -> dict:
    path = Path(recipe)
    if not path.suffix and not path.is_file():
        path = resource("pipelines") / f"{folder}{recipe}.yaml"
    if not path.is_file():
        raise InputError(f"expected {wanted} or one of {', '.join(known)}, found {str(recipe)!r}")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def read_yaml(path: Path):
    """What a YAML file says; InputError where it is none, larger than 1 MiB, or a few lines that stand for millions."""
    size = path.stat().st_size
    if size > _LONGEST_RECIPE:
        raise InputError(f"{path}: expected a YAML file of settings, found {size >> 20:,} MiB: is it a recipe?")
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _parse_yaml(text: str, source: str):
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that cannot be
        raise InputError(f"{source} is not YAML: {' '.join(str(error).split())[:300]}") from error
    # An alias stands for a whole tree: ten lines of ten aliases each are 10^10 values as soon as they are copied.
    nodes, waiting = 0, [tree]
    while waiting:
        node = waiting.pop()
        nodes += 1
        if nodes > _MOST_NODES:
            raise InputError(f"{source}: expected settings, found aliases (*name) that stand for over {_MOST_NODES:,}")
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return tree


def _apply(tree: dict, override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise InputError(f"expected an override like train.epochs=3, found {override!r}")
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise InputError(f"override {override!r}: {key} is a value, not a section")
    if value[:1] in tuple("%@`"):  # no YAML can begin so, but a format of times does: %d/%m/%Y
        node[keys[-1]] = value
    else:
        node[keys[-1]] = _parse_yaml(value, f"override {override[:80]!r}: the value")


def _expand(node):
    if isinstance(node, dict):
        return {key: _expand(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value) for value in node]
    if isinstance(node, str):
        return os.path.expandvars(os.path.expanduser(node))
    return node


def _explain(error: dict) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = Config
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        close = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(section.model_fields)}"
        return f"unknown key {where} ({hint})"
    return f"{where or 'settings'}: {error['msg']}, found {error.get('input')!r}"
