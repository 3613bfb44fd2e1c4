"""Hyper-parameter search on the validation items with Optuna's TPE (`llmcfsr search`).

The search uses a dataset whose test items cannot be read.
"""

import json
import logging
import math
import os
import random
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from llmcfsr_merlin.config.layers import flatten
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import LEXICAL, SCHEMA, SPLITS, VECTORS, VOCABULARY, history_rule
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.files import remove, remove_temporary
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.ownership import claim_results
from llmcfsr_merlin.runtime.stage import Manifest, hash_json, write_json
from llmcfsr_merlin.training.calibration import ValidationBatches, ndcg, validation_ranks
from llmcfsr_merlin.training.fit import fit_model

if TYPE_CHECKING:
    from optuna import Trial

_log = logging.getLogger(__name__)

TRIALS, BEST, JOURNAL = "trials.json", "best.yaml", "journal.log"


def search(config: Config, run_dir: Path, space: dict[str, list], trials: int, out: Path | None = None) -> list[dict]:
    """Train `trials` different settings from `space`, or all if there are fewer, and rank the validation items with
    each; returns them, best first.

    config: the recipe, whose own settings are the first trial. run_dir: a run with the stages prepare and embed (the
    latter if the model reads vectors). space: e.g. {"train.negatives": [256, 1024]}, sections model and train only.
    One dict per trial: number, settings, ndcg@10 (full ranking, the objective), hr@10, tail ndcg@10, epochs,
    weight <feature>, seconds. Writes TRIALS and BEST, a file for --model, into `out` (run_dir/search); the same call
    goes on where it stopped.
    Raises InputError for a space that does not fit, if another process writes the run or `out` is not of this project,
    and MissingDependency without Optuna.
    """
    with run_lock(run_dir):
        return _search(config, Path(run_dir), space, trials, out or Path(run_dir) / "search")


def _search(config: Config, run_dir: Path, space: dict[str, list], trials: int, out: Path) -> list[dict]:
    optuna = _optuna()
    space = {key: _choices(config, key, values) for key, values in flatten(space).items()}
    if config.train.align_to:
        raise InputError("train.align_to needs another trained model, which a search does not train: unset it")
    claim_results(out, ("trial-*", JOURNAL, TRIALS, BEST))
    _tidy(out)
    dataset = _dataset(config, run_dir)
    fixed = {"space": space, "config": config.model_dump(include={"model", "train", "evaluate", "prepare"})}
    name = hash_json(fixed | {"prepare": Manifest.load(run_dir / "prepare").key})[:16]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / JOURNAL)))
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=config.train.seed, n_startup_trials=max(4, trials // 3)),
    )  # fmt: skip
    if not study.trials:
        study.enqueue_trial({key: _at(config, key) for key in space})

    def finished() -> list:
        return [trial for trial in study.trials if trial.state.is_finished() and trial.value is not None]

    def objective(trial: "Trial") -> float:
        settings = {key: trial.suggest_categorical(key, values) for key, values in space.items()}
        for old in finished():
            if old.params == settings:  # already evaluated: skip
                trial.set_user_attr("found", old.user_attrs["found"])
                return old.value
        _log.info("trial %d of %d: %s", len(_different(finished())) + 1, most, _said(settings))
        found = try_on_validation(config.with_settings(settings), dataset, out / f"trial-{trial.number}")
        _log.info("  validation NDCG@10 %.4f, tail %.4f", found["ndcg@10"], found["tail ndcg@10"])
        trial.set_user_attr("found", found)
        return found["ndcg@10"]

    most = min(trials, math.prod(map(len, space.values())))
    while len(tried := _different(finished())) < most:
        study.optimize(objective, n_trials=1)
        if len(found := _different(finished())) == len(tried):  # the sampler asked for what is known
            study.enqueue_trial(_untried(space, [trial.params for trial in tried], config.train.seed))
        _write(config, found, out)
    return json.loads((out / TRIALS).read_text())


def try_on_validation(config: Config, dataset: Dataset, work: Path) -> dict:
    """Train one setting, in the folder `work` that is removed again, and rank the validation items."""
    start = time.perf_counter()
    exclude = config.evaluate.exclude_history
    model, history = fit_model(
        config.model, config.train, dataset, work, exclude_history=exclude, tail_item=config.evaluate.tail_item,
        report=lambda line: _log.info("  %s", line),
    )  # fmt: skip
    shutil.rmtree(work)
    batches = ValidationBatches(dataset.files("valid"), config.evaluate.batch_size, model.device)
    model.prepare(bulk=True)
    targets, found = validation_ranks(model, batches, [tuple(model.weights.values())])
    (ranks,) = found[history_rule(exclude)]
    tail = dataset.train_counts[targets] < config.evaluate.tail_item
    return {
        "ndcg@10": round(float(ndcg(ranks)), 5), "hr@10": round(float((ranks < 10).mean()), 5),
        "tail ndcg@10": round(float(ndcg(ranks[tail])), 5) if tail.any() else 0.0,
        "network ndcg@10": round(max((epoch["ndcg@10"] for epoch in history), default=0.0), 5),
        "epochs": len(history), **{f"weight {name}": weight for name, weight in model.weights.items()},
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip


def _dataset(config: Config, run_dir: Path) -> Dataset:
    """The verified data of the run, its test items hidden."""
    prepared, embedded = run_dir / "prepare", run_dir / "embed" if config.model.reads else None
    manifest = Manifest.load(prepared)
    manifest.verify(prepared, manifest.below(SCHEMA, VOCABULARY, *SPLITS[:2]), remembered=True)
    if embedded:
        manifest = Manifest.load(embedded)
        manifest.verify(embedded, manifest.below(VECTORS, LEXICAL), remembered=True)
    return Dataset(prepared, embedded, config.prepare.max_length).without_test()


def _tidy(out: Path) -> None:
    """Remove what an interrupted search left: its trial, Optuna's lock, and a partial journal line, which the next
    would be appended to."""
    for trial in out.glob("trial-*"):
        remove(trial)
    for lock in out.glob(f"{JOURNAL}.lock*"):  # the run is locked by us alone
        lock.unlink()
    remove_temporary(out)
    journal = out / JOURNAL
    if journal.is_file():
        whole = journal.read_bytes().rfind(b"\n") + 1
        os.truncate(journal, whole)


def _choices(config: Config, key: str, values: object) -> list:
    """The values of a key, including the recipe's own; each must be a valid setting."""
    if key.partition(".")[0] not in ("model", "train"):
        raise InputError(f"search space: expected keys of the sections model and train, found {key}")
    if not isinstance(values, list) or not values:
        raise InputError(f"search space: expected a list of values for {key}, found {values!r}")
    for value in values:
        config.with_settings({key: value})
    own = _at(config, key)
    if not isinstance(own, None | bool | int | float | str):
        raise InputError(f"search space: expected keys with a single value, found {key} = {own!r}")
    return values if own in values else [own, *values]


def _at(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _different(trials: list) -> list:
    """The first trial of each setting."""
    return [trial for place, trial in enumerate(trials) if all(trial.params != old.params for old in trials[:place])]


def _untried(space: dict[str, list], tried: list[dict], seed: int) -> dict:
    """A setting drawn at random among those that are not in `tried`; there is one."""
    draw = random.Random(f"{seed} {len(tried)}")
    while (settings := {key: draw.choice(values) for key, values in space.items()}) in tried:
        pass
    return settings


def _write(config: Config, finished: list, out: Path) -> None:
    ordered = sorted(finished, key=lambda trial: -trial.value)
    rows = [{"trial": trial.number, "settings": trial.params, **trial.user_attrs["found"]} for trial in ordered]
    write_json(out / TRIALS, rows)
    best = config.with_settings(ordered[0].params).model_dump(mode="json", include={"model", "train"})
    for key in ("seed", "device"):
        del best["train"][key]
    text = f"# The best of {len(rows)} trials on validation.\n" + yaml.safe_dump(best, sort_keys=False)
    temporary = out / f".{BEST}.{os.getpid()}"
    temporary.write_text(text)
    temporary.replace(out / BEST)


def _said(settings: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency(f"a search needs Optuna ({error}): pip install 'llmcfsr-merlin[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
