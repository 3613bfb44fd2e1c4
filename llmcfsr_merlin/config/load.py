"""Loads the frozen tree of settings (schema.py) from a recipe.

`Config.load("pipelines/beauty.yaml", ["train.epochs=3"])` reads a recipe and applies overrides. Unknown keys, wrong
types and values out of range are errors that name the key. Paths in a recipe may use `~` and environment variables
(`${LLMCFSR_DATA}/...`); relative paths are relative to the current folder.
"""

import json
from pathlib import Path

from pydantic import PrivateAttr, ValidationError

from llmcfsr_merlin.config.explain import explain
from llmcfsr_merlin.config.layers import Settings, apply, flatten, override, preset, read_recipe, recipes
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.config.schema import DEFAULT, Schema
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import RECORD
from llmcfsr_merlin.runtime.stage import write_json

CUSTOM = "custom"  # the name of a model whose recipe lists scorers but no name
_LAYERS = "layers"  # in RECORD
_SECTIONS = ("data", "prepare", "train")  # keys of a record of any version
# Sizes shared by all models of a run, so that a baseline gets those of the model; the rest of the section `model`
# defines the model.
_BASELINES = {"item_knn": "model.scorers.item_knn.", "ease": "model.scorers.ease."}  # only if the model has them
_SHARED = ("hidden", "layers", "heads", "dropout")
_BUDGET = ("train.epochs", "train.patience")  # what a recipe gives one model it gives all, whatever their presets say


class Config(Schema):
    """The whole configuration; `name` is also the default run directory, runs/<name>."""

    _recipe: Settings = PrivateAttr(default_factory=dict)
    _preset: Settings | None = PrivateAttr(None)
    """The model preset applied to the recipe; None: the recipe's own model, or DEFAULT."""
    _overrides: Settings = PrivateAttr(default_factory=dict)

    @classmethod
    def load(
        cls,
        recipe: str | Path | None = None,
        overrides: tuple[str, ...] | list[str] = (),
        model: str | Path | None = None,
    ) -> "Config":
        """Read a recipe (a path, or the name of one in pipelines/), apply a model preset, then `section.key=value`.

        model: a path, or the name of one in pipelines/models; its sections `model` and `train` override the recipe's.
        Raises InputError with one line that names the key, what was expected and what was found.
        """
        above: Settings = {}
        for text in overrides:
            above |= override(text)
        if recipe and Path(recipe).name == RECORD and Path(recipe).is_file():  # the settings of a run, as a recipe
            config = cls.recorded(Path(recipe).parent)
            return (config.with_model(model) if model is not None else config).with_settings(above)
        given = read_recipe(recipe, "a recipe file", recipes()) if recipe else {}
        return cls._of(given, None if model is None else preset(model), above, recipe or "settings")

    def with_model(self, model: str | Path) -> "Config":
        """The same settings with another model, as load(..., model) would give, e.g. for a baseline.

        Everything stays except the section `model` and the current preset's `train` settings; the sizes that models
        share (hidden, layers, heads, dropout) stay too, and so does a given train.epochs or train.patience. It does not
        matter whether the settings come from a recipe, code, with_settings or a run.
        """
        return self._of(_own(self._recipe) | self._overrides | self._changed(), preset(model), {}, model)

    def with_settings(self, settings: Settings) -> "Config":
        """A copy with some settings changed, {"train.epochs": 5}; InputError if one is invalid."""
        return self._of(self._recipe, self._preset, self._overrides | self._changed() | flatten(settings), "settings")

    @property
    def baselines(self) -> list[str]:
        """evaluate.baselines without the model itself: preset names."""
        return [name for name in self.evaluate.baselines if name != self.model.name]

    @property
    def reads_vectors(self) -> bool:
        """Whether the model or one of its baselines reads item vectors."""
        return bool(self.model.reads) or any(self.with_model(name).model.reads for name in self.baselines)

    def record(self, run_dir: Path) -> None:
        """Write the settings into the run directory, where recorded() finds them.

        InputError if a file of that name belongs to something else.
        """
        path = Path(run_dir) / RECORD
        if path.is_file() and not all(f'"{section}"'.encode() in path.read_bytes() for section in _SECTIONS):
            raise InputError(f"{path} was not written by this project: move it away or choose another --run")
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        layers = {"recipe": self._recipe, "preset": self._preset, "overrides": self._overrides | self._changed()}
        write_json(Path(run_dir) / RECORD, self.model_dump(mode="json") | {_LAYERS: layers})

    @classmethod
    def recorded(cls, run_dir: str | Path) -> "Config":
        """The settings that a run directory was created with; InputError if it is not a run directory."""
        path = Path(run_dir) / RECORD
        if not path.is_file():
            raise InputError(f"expected a run directory, found no {path}: `llmcfsr run RECIPE --run {run_dir}` first")
        try:
            tree = json.loads(path.read_text())
            tree.pop("model_laid_over", None)  # from an earlier version
            layers = tree.pop(_LAYERS, {})
            config = cls._validate(apply({}, flatten(tree)), path)
            config._recipe, config._preset = layers.get("recipe", {}), layers.get("preset")
            config._overrides = layers.get("overrides", {})
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is not readable ({error}): run a stage of its recipe again") from error
        return config

    @classmethod
    def _of(cls, recipe: Settings, model: Settings | None, overrides: Settings, source: str | Path) -> "Config":
        config = cls._validate(_built(recipe, model, overrides), source)
        config._recipe, config._preset, config._overrides = recipe, model, overrides
        return config

    def _changed(self) -> Settings:
        """Settings of this tree that its layers do not have: given in code, or by model_copy."""
        try:
            layers = self._of({"model.name": self.model.name} | self._recipe, self._preset, self._overrides, "settings")
        except InputError:  # from another version
            return {}
        own, built = flatten(self.model_dump(mode="json")), flatten(layers.model_dump(mode="json"))
        changed = {path: value for path, value in own.items() if value != built.get(path)}
        scorers = changed.pop("model.scorers", None)
        if scorers is not None:
            before = built["model.scorers"]
            if list(scorers) != list(before):
                changed["model.scorers"] = scorers
            for name in scorers:
                for key, value in scorers[name].items():
                    if value != before.get(name, {}).get(key):
                        changed[f"model.scorers.{name}.{key}"] = value
        return changed

    @classmethod
    def _validate(cls, tree: dict, source: str | Path) -> "Config":
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise InputError(f"{source}: {explain(error, cls)}") from error


def _built(recipe: Settings, model: Settings | None, overrides: Settings) -> dict:
    """The tree of a recipe with its model preset and overrides applied."""
    if model is None:
        name = recipe.get("model.name")
        base = preset(name if name in presets() else DEFAULT)
        if "model.scorers" in recipe:  # a full list of scorers is another model, not an override of this one
            base = {"model.name": CUSTOM}
        layers = [base, recipe, overrides]
    else:
        layers = [model, _beneath(recipe, model), overrides]
    tree: dict = {}
    for layer in layers:
        there = layer.get("model.scorers") or tree.get("model", {}).get("scorers") or {}
        of_others = tuple(prefix for name, prefix in _BASELINES.items() if name not in there)
        apply(tree, {path: value for path, value in layer.items() if not path.startswith(of_others)})
    return tree


def _own(recipe: Settings) -> Settings:
    """A recipe without the settings that only repeat its model preset."""
    name = recipe.get("model.name")
    known = preset(name) if name in presets() else {}
    return {path: value for path, value in recipe.items() if path not in known or known[path] != value}


def _beneath(settings: Settings, model: Settings) -> Settings:
    """Settings that a preset leaves visible: all that it does not set and the budget of training, but only the sizes of
    the section `model`."""
    kept = {
        path: value for path, value in settings.items()
        if path in _BUDGET or not (path.startswith("model.") or path in model)
    }  # fmt: skip
    kept |= {path: value for path, value in settings.items() if path.startswith(tuple(_BASELINES.values()))}
    scorers = model.get("model.scorers", {})
    if "network" in scorers:
        whole = (settings.get("model.scorers") or {}).get("network") or {}
        for key in _SHARED:
            path = f"model.scorers.network.{key}"
            if key not in (scorers["network"] or {}) and (path in settings or key in whole):
                kept[path] = settings.get(path, whole.get(key))
    return kept
