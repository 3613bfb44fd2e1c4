"""One model, seed and split of a dataset: its settings chosen on validation, fitted, and ranked on the test items.

runs/quality/<dataset>/<split>/base holds the data (ingest, prepare, embed), <name>-<seed> the trained model (`train`
if it has a network) and its ranks (`evaluate`), <name>-search the trials.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from quality_rows import made_by

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import (
    LEXICAL,
    METRICS,
    RANKS,
    SCHEMA,
    SEQUENCES,
    TRAIN_HISTORY,
    VECTORS,
    VOCABULARY,
)
from llmcfsr_merlin.evaluation.measure import measure, summary_masks
from llmcfsr_merlin.evaluation.ranks import RECIPE, SEED, ScoreFunction, read_ranks
from llmcfsr_merlin.evaluation.significance import compare
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, sha256_file, write_json
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.registry import scorer_class
from llmcfsr_merlin.scoring.scorer import FitContext
from llmcfsr_merlin.training.calibration import ValidationBatches, calibrate
from llmcfsr_merlin.training.fit import fit_model, validation_sample
from llmcfsr_merlin.training.memory import ranked_users
from llmcfsr_merlin.training.search import TRIALS, search

RUNS = Path("runs/quality")
# The filters count the whole log, as papers do that filter before they split.
SPLITS = {"loo": [], "temporal": ["prepare.split=temporal", "prepare.targets=all", "prepare.filter_by=log"]}
# Of a trained model: features whose weights become 0; scorers that are fitted with these settings instead, or another
# train.tail_tolerance, with all weights calibrated anew.
Change = tuple[str, ...] | dict[str, dict] | float
Result = tuple[list[dict], dict, list[dict]]  # metric rows, what it was given and took, its trials


def recipe_of(dataset: str) -> str | Path:
    """A recipe beside this script, or one that ships."""
    path = Path(__file__).parent / f"{dataset}.yaml"
    return path if path.is_file() else dataset


@dataclass(frozen=True)
class Bench:
    """A dataset and split, and what all its models are given: settings, and settings to try on validation items."""

    dataset: str
    split: str
    overrides: tuple[str, ...] = ()
    trials: int = 1

    @property
    def folder(self) -> Path:
        return RUNS / self.dataset / self.split

    def config(self, model: str | None = None, *settings: str) -> Config:
        given = [*SPLITS[self.split], *self.overrides, *settings]
        return Config.load(recipe_of(self.dataset), given, model)

    def base(self) -> Dataset:
        """Ingest, prepare and embed, once."""
        config, run = self.config(), self.folder / "base"
        run_stages(config, run, ("ingest", "prepare"))
        if config.data.items or config.data.format != "table":  # the papers' own files come without texts
            run_stages(config, run, ("embed",))
        return Dataset.load(run)

    def variant(self, base: Dataset, name: str) -> Dataset:
        """The dataset with vectors that benchmarks/vectors.py made; it belongs to no run."""
        embedded = base.run / "variants" / name
        if not (embedded / VECTORS).is_dir():
            raise SystemExit(f"expected vectors in {embedded / VECTORS}, found none: run benchmarks/vectors.py first")
        return Dataset(base.prepared, embedded, base.max_length)

    def measure(self, dataset: Dataset, name: str, model: str, seed: int, *settings: str) -> Result:
        """Fit and rank one model preset, with what is best of `trials` settings on validation items."""
        config = self.config(model, f"model.name={name}", *settings)
        if dataset.run is None and "content" in config.model.scorers:  # other vectors are compared by themselves
            config = config.with_settings({"model.scorers.content.lexical_share": 0.0})
        tried = self._tried(config, name)
        if tried:
            config = config.with_settings(tried[0]["settings"])
        config, folder = config.with_settings({"train.seed": seed}), self.folder / f"{name}-{seed}"
        if not config.model.network:  # fitted in the time that reading it would take
            about = {"model": config.model.model_dump(), "train": config.train.identity()}
            rows, done = self._rank(dataset, config, folder, lambda scratch: _fit(dataset, config, scratch)[0], about)
            return rows, self._given(config, done, done, tried), tried
        fitted = self._train(dataset, config, folder)
        rows, done = self._rank(dataset, config, folder, lambda _: _load(config, folder / "train"), trained="train")
        return rows, self._given(config, fitted, done, tried), tried

    def reweigh(self, dataset: Dataset, name: str, model: str, seed: int, change: Change) -> Result:
        """Rank a trained model of a seed with the weights that a change of it has."""
        config = self.config(model, f"model.name={name}", f"train.seed={seed}")
        folder, trained = self.folder / f"{name}-{seed}", self.folder / f"{model}-{seed}" / "train"

        def reweighed(scratch: Path) -> Ensemble:
            ensemble = _load(config, trained)
            if isinstance(change, tuple):
                none = dict.fromkeys(change, 0.0)
                by_rule = {rule: weights | none for rule, weights in ensemble.history_weights.items()}
                ensemble.set_weights(none)
                ensemble.history_weights = by_rule
                return ensemble
            if isinstance(change, dict):
                ensemble = _with_others(ensemble, config, dataset, change)
            tolerance = change if isinstance(change, float) else config.train.tail_tolerance
            files = validation_sample(dataset, scratch, config.train)
            batches = ValidationBatches(files, ranked_users(dataset.shape.n_items), ensemble.device)
            tail = dataset.train_counts < config.evaluate.tail_item
            calibrate(
                ensemble, batches, tail, tolerance, config.evaluate.exclude_history, dataset.train_counts == 0,
                config.train.untrained_tolerance,
            )  # fmt: skip
            return ensemble

        about = {"reweighed": change}
        rows, done = self._rank(dataset, config, folder, reweighed, about, f"../{trained.parent.name}/train")
        return rows, self._given(config, done, done, []), []

    def pairs(self, base: Dataset, model: str) -> list[dict]:
        """Paired tests of a model against every other that is ranked, over all seeds of each."""
        config, known = self.config(), {}
        for path in sorted(self.folder.glob(f"*/evaluate/{RANKS}")):
            frame = read_ranks(path)
            known.setdefault(str(frame[RECIPE].iloc[0]), []).append(frame)
        if model not in known:
            return []
        ours = pd.concat(known.pop(model))
        masks = summary_masks(base.prepared, ours, config.evaluate)
        seeds = sorted(set(ours[SEED]))
        return [
            {"dataset": config.name, "split": self.split, "model": model, "against": other,
             "seeds": f"{len(seeds)} and {len(frames)}", "rule": row.pop("history"), "users": row.pop("count"),
             **{key: row[key] for key in row if key != "relative"}, **made_by()}
            for other, frames in known.items()
            for row in compare(ours, pd.concat(frames), masks, (10,), seed=config.evaluate.seed)
        ]  # fmt: skip

    def _tried(self, config: Config, name: str) -> list[dict]:
        spaces = yaml.safe_load((Path(__file__).parent / "quality_space.yaml").read_text())
        space = {key: values for scorer in config.model.scorers for key, values in spaces.get(scorer, {}).items()}
        if self.trials < 2 or not space or config.train.align_to:  # a search trains no teacher
            return []
        out = self.folder / f"{name}-search"
        print(f"choosing settings of {name} on validation items, {self.trials} trials", flush=True)
        return search(config, self.folder / "base", space, self.trials, out) and json.loads((out / TRIALS).read_text())

    def _given(self, config: Config, fitted: Manifest, ranked: Manifest, tried: list[dict]) -> dict:
        network = config.model.network is not None
        return {
            "trials": max(len(tried), 1), "chosen": json.dumps(tried[0]["settings"] if tried else {}),
            "most_epochs": config.train.epochs if network else 0, "patience": config.train.patience if network else 0,
            "epochs": fitted.counts.get("epochs", 0), "fit_seconds": round(fitted.seconds),
            "rank_seconds": round(ranked.seconds), "weights": json.dumps(fitted.counts.get("weights", {})),
            **{key: ranked.counts.get(key, "unknown") for key in ("version", "commit")}, "device": device_name(),
        }  # fmt: skip

    def _train(self, dataset: Dataset, config: Config, folder: Path, stage: str = "train") -> Manifest:
        """Write folder/train, the fitted model and the history of its training; folder/teacher if it has one."""
        teacher = config.with_model(config.train.align_to) if config.train.align_to else None
        if teacher:
            self._train(dataset, teacher, folder, "teacher")

        def work(out: Path) -> dict:
            print(f"training {folder.name}: {config.model.name}", flush=True)
            table = None
            if teacher:
                network = _load(teacher, folder / "teacher").scorers["network"].network
                table = network.items.collaborative.weight.detach().cpu().numpy()
            model, history = _fit(dataset, config, out / ".checkpoints", table)
            shutil.rmtree(out / ".checkpoints")
            save_model(model, out, dataset.vocabulary.hash)
            write_json(out / TRAIN_HISTORY, history)
            return {"model": config.model.name, "epochs": len(history), "weights": model.weights, **made_by()}

        settings = {
            "model": config.model.trained_by(),
            "train": config.train.identity(),
            "exclude_history": config.evaluate.exclude_history,
            "tail_item": config.evaluate.tail_item,
        }
        if config.model.reads and dataset.embedded:
            folders = [dataset.embedded / name for name in (VECTORS, LEXICAL)]
            settings["vectors"] = [sha256_file(path) for of in folders for path in sorted(of.glob("*.parquet"))]
        inputs = {"../base/prepare": [VOCABULARY, SCHEMA, "train/", "valid/"]}
        if teacher:
            inputs["teacher"] = []
        return run_stage(folder, stage, settings, inputs, work, resumable=True)[0]

    def _rank(
        self,
        dataset: Dataset,
        config: Config,
        folder: Path,
        model: Callable[[Path], Ensemble],
        about: dict | None = None,
        trained: str | None = None,
    ) -> tuple[list[dict], Manifest]:
        """Write folder/evaluate: ranks and metric rows.

        model: makes it, in a folder for temporary files. about: what it depends on beside `trained`, a stage seen from
        `folder`.
        """

        def scores() -> ScoreFunction:
            with tempfile.TemporaryDirectory() as scratch:
                ranker = Ranker(model(Path(scratch)), bulk=True)
                return ranker.by_history(config.evaluate.history)

        def work(out: Path) -> dict:
            models = {config.model.name: scores}
            rows = measure(out, dataset, models, name=config.name, seed=config.train.seed, settings=config.evaluate)
            return {"recipe": config.model.name, "rows": len(rows), **made_by()}

        settings = {"dataset": config.name, "recipe": config.model.name, "seed": config.train.seed}
        settings |= config.evaluate.model_dump(exclude={"baselines"}) | (about or {})
        inputs = {"../base/prepare": [VOCABULARY, SEQUENCES]}
        if trained:
            inputs[trained] = []
        done = run_stage(folder, "evaluate", settings, inputs, work)[0]
        return json.loads((folder / "evaluate" / METRICS).read_text()), done


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _load(config: Config, folder: Path) -> Ensemble:
    return load_model(folder, device=str(choose_device(config.train.device)), allow=config.model.extensions)


def _with_others(ensemble: Ensemble, config: Config, dataset: Dataset, scorers: dict[str, dict]) -> Ensemble:
    """With other scorers that need no training, or with other settings of them."""
    given = {f"model.scorers.{name}": settings for name, settings in scorers.items()}
    # Each by itself, too: an override of one setting stays in force under a whole section.
    given |= {f"model.scorers.{name}.{key}": value for name, of in scorers.items() for key, value in of.items()}
    more = config.with_settings(given).model
    context = FitContext(Path(), lambda network: [])
    fitted = {name: scorer_class(name).fit(more.scorers[name], dataset, ensemble.vectors, context) for name in scorers}
    made = Ensemble(more, ensemble.scorers | fitted, ensemble.shape, ensemble.vectors).eval()
    made.history_rule = ensemble.history_rule
    return made


def _fit(dataset: Dataset, config: Config, work: Path, table: np.ndarray | None = None) -> tuple[Ensemble, list[dict]]:
    """A fitted and calibrated model and the history of its training. table: of a teacher to align to."""
    return fit_model(
        config.model,
        config.train,
        dataset,
        work,
        item_table=table,
        exclude_history=config.evaluate.exclude_history,
        tail_item=config.evaluate.tail_item,
        report=lambda line: print(f"  {line}", flush=True),
    )
