"""`update`: ingest a day, go on training from yesterday's weights, and publish what passes the gate."""

import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import ingest_stage
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.failures import clear_failures
from llmcfsr_merlin.runtime.files import remove_temporary, write_json
from llmcfsr_merlin.runtime.layout import RECORD, UPDATE
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.manifest import MANIFEST, Manifest, updated_by
from llmcfsr_merlin.serving import export_stage
from llmcfsr_merlin.update import data_stages, gate, model_stages

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Updated:
    """manifests by stage; seconds of each that ran; version in the served repository, None if none was named."""

    manifests: dict[str, Manifest]
    seconds: dict[str, float]
    version: int | None = None


def update(
    config: Config,
    day: tuple[str, ...],
    previous: str | Path,
    run: str | Path,
    *,
    items: Path | None = None,
    publish: Path | None = None,
    url: str | None = None,
    key_file: Path | None = None,
    stages: tuple[str, ...] = (),
) -> Updated:
    """Update the model of the run `previous` by the log of a day into the new run directory `run`.

    config: settings of the recipe. day: files or patterns of the day's log, as data.interactions. items: a file of new
    items. publish: a run directory or repository that is served, which gets the model as its next version if it passes
    the gate; url, key_file: of the server that then loads it. stages: only these; empty: all. Stages are atomic and
    skipped when up to date: the same call goes on after a stop. Raises InputError for bad input, and if the gate keeps
    the model back; whatever fails, the served repository stays as it is.
    """
    previous, run = Path(previous), Path(run)
    config = config.with_settings({"data.interactions": day})
    _check(config, previous, run)
    catalogue = model_stages.catalogue_files(config, items)
    steps: dict[str, Callable[[], Manifest]] = {
        "ingest": lambda: ingest_stage.run(config, run),
        "prepare": lambda: data_stages.prepare(config, previous, run, items),
        "embed": lambda: data_stages.embed(config, previous, run, items),
        model_stages.GROWN: lambda: model_stages.grow(config, previous, run, items),
        model_stages.ASKED: lambda: model_stages.ask(config, run),
        "train": lambda: model_stages.train(config, run, catalogue),
        "evaluate": lambda: model_stages.evaluate(config, run),
        "export": lambda: export_stage.run(config, run),
        "gate": lambda: gate.gate(config, run),
    }
    if not config.model.reads:
        del steps["embed"]
    manifests, seconds = {}, {}
    with clear_failures(str(run)), run_lock(run):
        remove_temporary(run, below=False)
        config.record(run)
        write_json(run / UPDATE, {"command": _command(day, previous, run, items)})
        for name, step in steps.items():
            if stages and name not in stages:
                continue
            before = _written(run / name)
            _log.info("%s ...", name)
            start = time.perf_counter()
            with clear_failures(name):
                manifests[name] = step()
            if _written(run / name) == before:
                _log.info("%s: nothing changed, skipped", name)
            else:
                seconds[name] = round(time.perf_counter() - start, 2)
                _log.info("%s: done in %.1f s", name, seconds[name])
        version = None
        if publish is not None and not stages:
            from llmcfsr_merlin.update.publish import put_out

            version = put_out(config, run, publish, url, key_file)
    return Updated(manifests, seconds, version)


def _check(config: Config, previous: Path, run: Path) -> None:
    for stage in ("prepare", "train", *(("embed",) if config.model.reads else ())):
        Manifest.load(previous / stage)
    if config.data.format == "synthetic":
        raise InputError("data.format=synthetic generates its log: expected a recipe that reads files, as --day does")
    if run.resolve() == previous.resolve():
        raise InputError(f"expected a new run directory for the day, found yesterday's ({run}): name another --run")
    if updated_by(run) is None and (run / "prepare").exists():
        raise InputError(f"expected a new run directory for the day, found another run in {run}: name another --run")
    if config.train.align_to:
        raise InputError("train.align_to: a model that is aligned to another is trained anew (`llmcfsr run`)")
    kept = Config.recorded(previous).prepare.max_length
    if kept != config.prepare.max_length:
        raise InputError(
            f"expected prepare.max_length {kept} as in {previous}, found {config.prepare.max_length}: set it back, or "
            "train anew (`llmcfsr run`)"
        )


def _command(day: tuple[str, ...], previous: Path, run: Path, items: Path | None) -> str:
    words = ["llmcfsr", "update", str(run / RECORD), *(word for file in day for word in ("--day", file))]
    words += ["--from", str(previous), "--run", str(run), *([] if items is None else ["--items", str(items)])]
    return shlex.join(words)


def _written(folder: Path) -> int | None:
    path = folder / MANIFEST
    return path.stat().st_mtime_ns if path.is_file() else None
