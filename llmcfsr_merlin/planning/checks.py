"""What a run of a recipe would do, need and stumble over, found before it starts (`llmcfsr check`)."""

import importlib.util
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.planning.forecast import Forecast, Prepared, forecast
from llmcfsr_merlin.planning.log_facts import Facts, Sizes, facts_of, read_in, sizes_of
from llmcfsr_merlin.runtime.doctor import Check
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.free_memory import available_memory, said_size
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.watch import require
from llmcfsr_merlin.text.language_models import ModelSource, resolve
from llmcfsr_merlin.training.procedures import PROCEDURES, fit_of, resolved, training_procedure

_FEW_USERS, _FEW_ROWS = 1000, 200
_CUT, _DOUBLES, _TIED, _TEXTLESS, _RETURNS = 0.05, 0.01, 0.2, 0.2, 0.01
_ROOM = 1.2  # of what is needed


@dataclass
class Checked:
    """checks: in order. plan: None if the run would stop before it could be estimated. data: what was said of the
    log."""

    checks: list[Check] = field(default_factory=list)
    plan: Forecast | None = None

    @property
    def passed(self) -> bool:
        return not any(check.status == "error" for check in self.checks)


def check_recipe(config: Config, run_dir: Path) -> Checked:
    """Read the log as stage ingest would, filter and cut it as prepare would, and measure the rest for a moment."""
    found = Checked(list(_machine(config)))
    source, check = _encoder(config)
    found.checks += check
    start = time.perf_counter()
    try:
        with read_in(config.data, config.prepare.tie_seed) as (log, counts, folder):
            read = time.perf_counter() - start
            if config.prepare.extend:
                found.checks.append(
                    Check(
                        "log",
                        "note",
                        _said(facts_of(log)),
                        "prepare.extend goes on from an earlier run: filters, times and memory are not checked",
                    )
                )
                return found
            raw = facts_of(log)
            found.checks += [Check("log", "ok", _said(raw)), *_read_log(config, counts)]
            start = time.perf_counter()
            left, _ = log.filtered(config.prepare)
            sizes = sizes_of(left, config.prepare, log.cut(config.prepare))
            facts = facts_of(left)
            filtered = time.perf_counter() - start
            found.checks += _prepared(config, facts, sizes)
            if found.passed:
                metadata = counts.get("items_with_metadata", 0)
                data = Prepared(left, sizes, folder, read, filtered, metadata)
                found.plan = forecast(config, data, source)
                found.checks += _needs(found.plan, run_dir)
    except (InputError, MissingDependency) as error:
        found.checks.append(Check("log", "error", *_split(str(error))))
    return found


def _machine(config: Config) -> Iterator[Check]:
    """Packages and devices that the settings need."""
    models = [config, *(config.with_model(name) for name in config.baselines)]
    for name in dict.fromkeys(resolved(one.train.procedure) for one in models if one.model.network):
        try:
            training_procedure(name)
            if name in PROCEDURES:
                fit_of(name)  # imports its libraries
            yield Check("trainer", "ok", f"train.procedure={name}")
        except (InputError, MissingDependency) as error:
            yield Check("trainer", "error", *_split(str(error)))
    try:
        require(config.train.report_to)
    except MissingDependency as error:
        yield Check("report_to", "error", *_split(str(error)))
    wanted = {"train.device": config.train.device, "embed.device": config.embed.device}
    for setting, device in wanted.items():
        try:
            choose_device(device, setting)
        except InputError as error:
            yield Check("device", "error", *_split(str(error)))
    if config.serve.format == "onnx" and importlib.util.find_spec("onnx") is None:
        yield Check("export", "error", "serve.format=onnx without the package onnx", "install the extra onnx")
    for one in models:
        if one.model.network is None or one.train.pretrain not in ("texts", "interests"):
            continue
        if not config.data.items and config.data.format != "synthetic":
            yield Check(one.model.name, "error", "it reads item texts, and data.items is empty", "give data.items")
        try:
            resolve(one.train.language_model)
        except (InputError, MissingDependency) as error:
            yield Check(one.model.name, "error", *_split(str(error)))
    tune = config.embed.tune
    if tune.enabled and tune.method == "lora" and importlib.util.find_spec("peft") is None:
        yield Check("tuning", "error", "embed.tune.method=lora without peft", "install the extra tune")


def _encoder(config: Config) -> tuple[ModelSource | None, list[Check]]:
    """The language model of the items, downloaded if that is what the run would do first."""
    if not config.reads_vectors:
        return None, [Check("encoder", "ok", "none: no model here reads item vectors")]
    if not config.data.items and config.data.format != "synthetic":
        return None, [
            Check(
                "encoder",
                "error",
                f"the model {config.model.name} reads item texts, and data.items is empty",
                "give data.items, or a model of ids: --model ids_only",
            )
        ]
    try:
        source = resolve(config.embed.model, config.embed.revision)
    except (InputError, MissingDependency) as error:
        return None, [Check("encoder", "error", *_split(str(error)))]
    return source, [Check("encoder", "ok", f"{source.name}, {source.revision}")]


def _read_log(config: Config, counts: dict) -> Iterator[Check]:
    lost = {
        name: count
        for name, count in counts.items()
        if name in ("bad_lines", "unreadable_time", "no_user", "no_item", "not_utf8") and count
    }
    if lost:
        said = ", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in lost.items())
        yield Check("rows", "warn", f"{said} of {counts['rows_read']:,} rows", "see the lines above for the first ones")
    repeated = counts.get("duplicates_kept", 0)
    if repeated > _DOUBLES * counts["interactions"]:
        yield Check(
            "duplicates",
            "warn",
            f"{repeated:,} rows repeat a (user, item, time)",
            "data.duplicates=drop, unless they are several pieces",
        )
    if config.reads_vectors:
        found, items = counts.get("items_with_metadata", 0), counts["items"]
        if not found:
            yield Check(
                "texts",
                "error",
                f"none of {items:,} items has attributes",
                "check that data.items and the log name items alike (data.item_columns.item)",
            )
        elif found < (1 - _TEXTLESS) * items:
            yield Check(
                "texts",
                "warn",
                f"{items - found:,} of {items:,} items have no attributes",
                "they get the mean vector: only what users did speaks for them",
            )


def _prepared(config: Config, facts: Facts, sizes: Sizes) -> Iterator[Check]:
    settings, rows = config.prepare, sizes.rows
    yield Check(
        "prepare",
        "ok",
        f"{_said(facts)}; rows: {rows['train']:,} train, {rows['valid']:,} validation, {rows['test']:,} test",
    )
    for split in ("train", "valid", "test"):
        if not rows[split]:
            yield Check("split", "error", f"no user for {split}", "lower prepare.min_item, or cut at other times")
        elif split != "train" and rows[split] < _FEW_ROWS:
            name = {"valid": "validation", "test": "test"}[split]
            yield Check(
                "split",
                "warn",
                f"{rows[split]:,} {name} targets: one is {1 / rows[split]:.1%} of HR@10",
                "read differences below a few of these as chance",
            )
    if facts.users < _FEW_USERS:
        yield Check(
            "users",
            "warn",
            f"{facts.users:,} users are few for a trained network",
            "compare with the baselines item_knn and popularity (evaluate.baselines)",
        )
    if sizes.cut_share > _CUT:
        yield Check(
            "max_length",
            "warn",
            f"{settings.max_length} cuts {sizes.cut_share:.0%} of the training data "
            f"({sizes.cut:,} interactions; the longest history has {facts.longest:,})",
            "raise prepare.max_length, which makes training longer; what is left are the latest items",
        )
    if settings.split == "leave_one_out" and settings.ties == "source" and sizes.tied_last > _TIED * facts.users:
        up = facts.ascending
        order = "" if up is None else f"; {up:.0%} of tied steps go up in the catalogue's order"
        yield Check(
            "ties",
            "warn",
            f"the last two interactions of {sizes.tied_last:,} of {facts.users:,} users share a time{order}",
            "if the order of the file means nothing: prepare.ties=shuffle, or prepare.split=temporal",
        )
    said = f"{sizes.returning:.1%} of the validation targets are items that the user had before"
    masked = config.evaluate.exclude_history
    if masked and sizes.returning > _RETURNS:
        yield Check(
            "history",
            "warn",
            f"{said}, and evaluate.exclude_history=true never recommends them",
            "evaluate.exclude_history=false: whether people return is learned",
        )
    elif not masked and "repeats" not in config.model.scorers and sizes.returning < _RETURNS:
        yield Check(
            "history",
            "warn",
            f"{said}, and the model has no scorer `repeats` that would learn it",
            "evaluate.exclude_history=true",
        )
    else:
        yield Check("history", "ok", f"{said}; the history is {'masked' if masked else 'kept'}")


def _needs(plan: Forecast, run_dir: Path) -> Iterator[Check]:
    free = available_memory()
    what = f"training {plan.memory_of} needs about {said_size(plan.memory)}, free are {said_size(free)}"
    if plan.memory > free:
        yield Check("memory", "error", what, "lower the network's hidden, or embed.reduction=pca with embed.dimension")
    else:
        yield Check("memory", "ok" if plan.memory * _ROOM < free else "warn", what)
    there = run_dir
    while not there.exists():
        there = there.parent
    room = shutil.disk_usage(there).free
    what = f"about {said_size(plan.disk)} in {run_dir}, free are {said_size(room)}"
    if plan.disk > room:
        yield Check("disk", "error", what, "free some, or choose another --run")
    else:
        yield Check("disk", "ok" if plan.disk * _ROOM < room else "warn", what)
    if plan.encoding is not None and plan.encoding.cut > _CUT:
        yield Check(
            "texts",
            "warn",
            f"embed.max_tokens cuts {plan.encoding.cut:.0%} of the prompts",
            "raise it: the time of stage embed grows with it",
        )


def _said(facts: Facts) -> str:
    return (
        f"{facts.interactions:,} interactions, {facts.users:,} users, {facts.items:,} items, "
        f"{facts.mean_length:.1f} a user"
    )


def _split(error: str) -> tuple[str, str]:
    """What was found, and what to do, of an error's line."""
    found, colon, action = error.rpartition(": ")
    return (found, action) if colon and len(action) > 3 else (error, "")
