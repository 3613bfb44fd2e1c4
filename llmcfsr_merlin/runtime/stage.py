"""Stages: atomic, resumable, skipped when up to date, and verified by checksum before they are read.

A stage owns one directory of the run. It writes into `.<stage>.partial` and renames when it is complete, so that a
killed stage leaves either the old result or the new one. Its manifest records the key (a hash of the stage's
configuration, of its format and of the manifests it read); a stage with the same key and unchanged files is
skipped.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import clear_failures, machine_failure
from llmcfsr_merlin.runtime.files import remove, remove_temporary, sha256_file, sync, write_json
from llmcfsr_merlin.runtime.layout import BASELINES
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.manifest import ATTEMPTS, KEY, MANIFEST, Manifest, format_of, hash_json, seal
from llmcfsr_merlin.runtime.ownership import claim, discard, standing

_log = logging.getLogger(__name__)
_NOTED = 5.0  # seconds between two notes of the time so far

__all__ = ["MANIFEST", "Manifest", "hash_json", "run_stage", "seal", "sha256_file", "write_json"]


def run_stage(
    run: Path,
    stage: str,
    settings: dict,
    inputs: Mapping[str, Sequence[str]] | Iterable[str],
    work: Callable[[Path], dict],
    *,
    force: bool = False,
    resumable: bool = False,
) -> tuple[Manifest, bool]:
    """Run one stage into `run/stage`, or skip it if it is up to date and its files are unchanged.

    settings: the part of the configuration that the result depends on. inputs: names of its input stages (as a mapping:
    with the prefixes of the files that it reads), verified first. work: called with the partial directory, writes the
    artefacts there and returns the counts for the manifest. resumable: keep a partial directory of the same key
    (checkpoints) instead of starting from an empty one. Returns the manifest and whether the stage ran (False:
    skipped).

    Raises InputError if another process writes the run, if a folder in the way is not of this project, if an
    input is missing or changed, and if the machine lacks disk, memory, permission or descriptors.
    """
    run = Path(run)
    nested = run.name == BASELINES
    with clear_failures("train" if nested else stage), run_lock(run.parent if nested else run):
        parts = inputs if isinstance(inputs, Mapping) else dict.fromkeys(inputs, ())
        return _run_stage(run, stage, settings, parts, work, force, resumable)


def _run_stage(
    run: Path,
    stage: str,
    settings: dict,
    inputs: Mapping[str, Sequence[str]],
    work: Callable[[Path], dict],
    force: bool,
    resumable: bool,
) -> tuple[Manifest, bool]:
    run.mkdir(parents=True, exist_ok=True)
    final, partial, old = run / stage, run / f".{stage}.partial", run / f".{stage}.old"
    read = {name: Manifest.load(run / name) for name in inputs}
    for name, manifest in read.items():
        manifest.check_format(run / name)
    key = _key(stage, settings, {name: manifest.key for name, manifest in read.items()})
    claim(partial)
    if os.path.lexists(final):
        discard(old, _kept(final))
    elif old.is_dir() and not (partial / MANIFEST).is_file():
        old.rename(final)  # stopped between the two renames of _replace, and the new result was discarded since
    found = standing(final)
    if found is None and final.is_dir() and any(final.iterdir()):
        what = "cannot be read" if (final / MANIFEST).is_file() else "is missing"
        _log.warning("%s: %s %s, so the stage runs again", stage, final / MANIFEST, what)
    if found is not None and found.format != format_of(stage):
        _log.info("%s: its files were written by another version of this project, so the stage runs again", stage)
    if not force and found is not None and found.key == key:
        fault = found.fault(final, remembered=True)
        if fault is None:
            return found, False
        _log.warning("%s: %s, so the stage runs again", stage, fault)
    if not force and (partial / MANIFEST).is_file():  # stopped between sealing and renaming
        manifest = Manifest.load(partial)
        if manifest.key == key and manifest.fault(partial) is None:
            _replace(final, partial, old)
            return manifest, True
    for name, manifest in read.items():
        manifest.verify(run / name, manifest.below(*inputs[name]), remembered=True)
    marker = partial / KEY
    resumed = resumable and not force and marker.is_file() and marker.read_text() == key
    if resumed:
        remove_temporary(partial)
    elif partial.exists():
        remove(partial, KEY)
    _begin(partial, key)
    earlier = Attempts.read(partial) if resumed else Attempts()
    with _Watched(partial, earlier) as spent:
        try:
            counts = work(partial)
        except Exception as error:
            expected = isinstance(error, InputError | MissingDependency) or machine_failure(error) is not None
            if not resumed or expected:
                raise
            reason = " ".join(str(error).split())[:120]
            _log.warning(
                "%s: the leftovers of an interrupted run cannot be used (%s: %s): starting over",
                stage, type(error).__name__, reason,
            )  # fmt: skip
            remove(partial, KEY)
            _begin(partial, key)
            counts = work(partial)
    (partial / ATTEMPTS).unlink(missing_ok=True)
    identities = {name: manifest.identity for name, manifest in read.items()}
    if earlier.count:
        counts = counts | {"attempts": earlier.count + 1}
    manifest = seal(partial, stage, key, counts, spent.seconds, spent.peak_mb, identities)
    _replace(final, partial, old)
    return manifest, True


def _key(stage: str, settings: dict, inputs: dict[str, str]) -> str:
    """A hash of everything that determines a stage's output. Format 1 is written as the version that introduced it."""
    number = format_of(stage)
    written = {"version": "0.1.0"} if number == 1 else {"format": number}
    return hash_json({"stage": stage, "settings": settings, "inputs": inputs} | written)


def _begin(partial: Path, key: str) -> None:
    partial.mkdir(exist_ok=True)
    (partial / KEY).write_text(key)


def _replace(final: Path, partial: Path, old: Path) -> None:
    """Replace the old result by a sealed directory; files that the stage did not write are kept aside."""
    (partial / KEY).unlink(missing_ok=True)
    if os.path.lexists(final):
        discard(old, _kept(final))
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    discard(old, _kept(final))


def _kept(final: Path) -> Path:
    return final.with_name(f"{final.name}.kept")


@dataclass(frozen=True)
class Attempts:
    """What earlier attempts at a stage took: wall seconds of all together, and the highest peak memory in MiB."""

    count: int = 0
    seconds: float = 0.0
    peak_mb: int = 0

    @classmethod
    def read(cls, partial: Path) -> "Attempts":
        """Of a directory that a stage left behind; none if its file is missing or cannot be read."""
        try:
            found = cls(**json.loads((partial / ATTEMPTS).read_text()))
            return found if found.seconds >= 0 else cls()
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, partial: Path) -> None:
        with suppress(OSError):  # what it says is not worth a failed stage
            write_json(partial / ATTEMPTS, asdict(self))


class _Watched:
    """Time and peak resident memory (this process and its children, five times a second) of a stage's attempts.

    Both are noted in the partial directory every few seconds, so that an attempt counts also if it is killed.
    """

    def __init__(self, partial: Path, earlier: Attempts):
        self._partial, self._earlier, self.peak_mb = partial, earlier, earlier.peak_mb

    def __enter__(self) -> "_Watched":
        self._start = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._end = time.perf_counter()
        if error is not None:
            self._note()

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        return self._earlier.seconds + getattr(self, "_end", time.perf_counter()) - self._start

    def _note(self) -> None:
        if (self._partial / KEY).is_file():
            Attempts(self._earlier.count + 1, round(self.seconds, 2), self.peak_mb).write(self._partial)

    def _watch(self) -> None:
        me, noted = psutil.Process(), self._start
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, total >> 20)
            if time.perf_counter() > noted + _NOTED:
                noted = time.perf_counter()
                self._note()
            if self._stop.wait(0.2):
                return
