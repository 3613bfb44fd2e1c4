"""One tree of frozen settings (settings.py), read from a recipe.

`Config.load("pipelines/beauty.yaml", ["train.epochs=3"])` reads a recipe and applies overrides. Unknown keys, wrong
types and values out of range are errors that name the key. Paths in a recipe may use `~` and environment variables
(`${LLMCFSR_DATA}/...`); relative paths are relative to the current folder.
"""

import copy
import difflib
import json
import os
from pathlib import Path

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from llmcfsr_merlin.contract import RECORD, resource
from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.settings import (
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
from llmcfsr_merlin.stage import write_json

_SECTIONS = ("data", "prepare", "train")  # what a record has, whichever version wrote it
_LONGEST_RECIPE = 1 << 20  # bytes
_MOST_NODES = 100_000  # of a recipe with its aliases written out


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
    _recipe: dict = PrivateAttr(default_factory=dict)
    """The settings without the model that was laid over them."""

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
        own = _laid_over(tree, _read_model(model)) if model is not None else copy.deepcopy(tree)
        for override in overrides:
            _apply(tree, override)
            _apply(own, override)
        config = cls._validate(_expand(own), recipe or "settings")
        config._recipe = _expand(tree)
        return config

    def with_model(self, model: str | Path) -> "Config":
        """The recipe (and overrides) that this was loaded from, with another model laid over it: a baseline's."""
        config = self._validate(_laid_over(self._recipe, _read_model(model)), model)
        config._recipe = self._recipe
        return config

    def with_settings(self, settings: dict[str, object]) -> "Config":
        """These settings with some changed, {"model.dropout": 0.5}; InputError where one does not fit."""
        tree = self.model_dump()
        for path, value in settings.items():
            section, _, key = path.partition(".")
            tree.setdefault(section, {})[key] = value
        config = self._validate(tree, "settings")
        config._recipe = self._recipe
        return config

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
        write_json(Path(run_dir) / RECORD, self.model_dump(mode="json"))

    @classmethod
    def recorded(cls, run_dir: str | Path) -> "Config":
        """The settings that a run directory was made with; InputError where it is none."""
        path = Path(run_dir) / RECORD
        if not path.is_file():
            raise InputError(f"expected a run directory, found no {path}: `llmcfsr run RECIPE --run {run_dir}` first")
        try:
            tree = json.loads(path.read_text())
            config = cls._validate(tree, path)
        except ValueError as error:
            raise InputError(f"{path} is not readable ({error}): run a stage of its recipe again") from error
        config._recipe = tree
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
