"""Runs the stages in order: ingest, prepare, embed, train, evaluate, export."""

import logging
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.failures import clear_failures
from llmcfsr_merlin.runtime.files import remove_temporary
from llmcfsr_merlin.runtime.layout import STAGES
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.manifest import updated_by
from llmcfsr_merlin.runtime.stage import MANIFEST, Manifest

_log = logging.getLogger(__name__)

# Imported when they run: each brings its own libraries.
_STAGES = {
    "ingest": "llmcfsr_merlin.dataset.ingest_stage",
    "prepare": "llmcfsr_merlin.dataset.prepare_stage",
    "embed": "llmcfsr_merlin.text.embed_stage",
    "train": "llmcfsr_merlin.training.train_stage",
    "evaluate": "llmcfsr_merlin.evaluation.evaluate_stage",
    "export": "llmcfsr_merlin.serving.export_stage",
}


def run_stages(
    config: Config,
    run_dir: str | Path | None = None,
    stages: Sequence[str] = STAGES,
    *,
    force: bool = False,
    report: Callable[[str], None] = _log.info,
) -> dict[str, Manifest]:
    """Run stages one after the other into `run_dir` (default runs/<config.name>); stages that are up to date are
    skipped.

    A model without semantic vectors skips `embed`. report: called with one line when a stage starts and ends. Returns
    the manifests by stage. Raises InputError if another process writes into run_dir.
    """
    run_dir = Path(run_dir or Path("runs") / config.name)
    if (command := updated_by(run_dir)) is not None and set(stages) - {"export"}:
        raise InputError(f"{run_dir} goes on from the run of another day: run `{command}`, or choose another --run")
    with clear_failures(str(run_dir)), run_lock(run_dir):
        remove_temporary(run_dir, below=False)
        config.record(run_dir)
        return _run_stages(config, run_dir, stages, force, report)


def _run_stages(
    config: Config, run_dir: Path, stages: Sequence[str], force: bool, report: Callable[[str], None]
) -> dict[str, Manifest]:
    manifests = {}
    for stage in stages:
        if stage == "embed" and not config.reads_vectors:
            report("embed: not needed, no model here reads semantic vectors")
            continue
        written = run_dir / stage / MANIFEST
        before = written.stat().st_mtime_ns if written.is_file() else None
        report(f"{stage} ...")
        start = time.perf_counter()
        with clear_failures(stage):
            manifests[stage] = import_module(_STAGES[stage]).run(config, run_dir, force=force)
        if written.stat().st_mtime_ns == before:
            report(f"{stage}: nothing changed, skipped")
        else:
            report(f"{stage}: done in {time.perf_counter() - start:.1f} s")
    return manifests
