"""Stages: atomic, resumable, skipped when already true, and verified by checksum before they are read.

A stage owns one directory of the run. It writes into `.<stage>.partial` and renames when it is complete, so that a
killed stage leaves either the old result or the new one. Its manifest records the key (a hash of the stage's
configuration and of the manifests it read); a stage whose key stands is skipped.
"""

import hashlib
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import psutil

from llmcfsr_merlin import __version__
from llmcfsr_merlin.contract import STAGES
from llmcfsr_merlin.errors import InputError

MANIFEST = "manifest.json"
# Packages whose version can change what a stage writes.
_RECORDED = (
    "nvtabular",
    "merlin-core",
    "transformers4rec",
    "transformers",
    "torch",
    "pandas",
    "numpy",
    "pyarrow",
    "dask",
)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_json(value) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself.

    `key` hashes its configuration and inputs, `counts` is what the stage reports (rows in, dropped, out, ...),
    `files` maps each file (relative path) to its sha256, `seconds` is wall time and `peak_memory_mb` the peak
    resident memory of the process and its children while it ran.
    """

    stage: str
    key: str
    counts: dict = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mb: int = 0

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Read a stage's manifest; InputError where there is none or it cannot be read."""
        path = Path(directory) / MANIFEST
        if not path.is_file():
            raise InputError(
                f"expected a finished stage in {directory}, found no {MANIFEST}: "
                f"run `llmcfsr {_verb(Path(directory))}` first"
            )
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is not a manifest of this project ({error}): rerun the stage") from error

    def verify(self, directory: Path, only: Iterable[str] | None = None) -> None:
        """Check the sha256 of every file (or of `only`) before it is loaded; InputError names the first bad one."""
        for name in self.files if only is None else only:
            path = Path(directory) / name
            if name not in self.files or not path.is_file():
                raise InputError(f"{path} is missing or not listed in its {MANIFEST}: rerun `llmcfsr {self.stage}`")
            if sha256_file(path) != self.files[name]:
                raise InputError(
                    f"{path} was changed after it was written (sha256 differs): rerun `llmcfsr {self.stage}`"
                )


def write_json(path: Path, value) -> None:
    """Write JSON to a temporary name and rename."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    temporary.replace(path)


def seal(
    directory: Path, stage: str, key: str, counts: dict, seconds: float = 0.0, peak_memory_mb: int = 0
) -> Manifest:
    """Write the manifest of a complete directory: sha256 of each file in it, versions, counts."""
    files = {
        str(path.relative_to(directory)): sha256_file(path)
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = Manifest(stage, key, counts, files, _versions(), round(seconds, 2), peak_memory_mb)
    write_json(Path(directory) / MANIFEST, asdict(manifest))
    return manifest


def run_stage(
    run: Path,
    stage: str,
    settings: dict,
    inputs: Iterable[str],
    work: Callable[[Path], dict],
    *,
    force: bool = False,
    resumable: bool = False,
) -> tuple[Manifest, bool]:
    """Run one stage into `run/stage`, or skip it where it is already true.

    settings: the part of the configuration that the result depends on. inputs: names of the stages it reads.
    work: called with the partial directory, writes the artefacts there and returns the counts for the manifest.
    resumable: keep a partial directory of the same key (checkpoints) instead of starting from an empty one.
    Returns the manifest and whether the stage ran (False: skipped).
    """
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    read = {name: Manifest.load(run / name).key for name in inputs}
    key = hash_json({"stage": stage, "settings": settings, "inputs": read, "version": __version__})
    final, partial = run / stage, run / f".{stage}.partial"
    if not force and (final / MANIFEST).is_file() and Manifest.load(final).key == key:
        return Manifest.load(final), False
    marker = partial / ".key"
    if partial.exists() and (force or not resumable or not marker.is_file() or marker.read_text() != key):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    marker.write_text(key)
    start = time.perf_counter()
    with _PeakMemory() as memory:
        counts = work(partial)
    marker.unlink()
    manifest = seal(partial, stage, key, counts, time.perf_counter() - start, memory.peak_mb)
    old = run / f".{stage}.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return manifest, True


def _verb(directory: Path) -> str:
    """The command that writes a stage's directory; baselines/<name> is written by train."""
    return directory.name if directory.name in STAGES else "train"


def _versions() -> dict[str, str]:
    found = {"llmcfsr-merlin": __version__, "python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class _PeakMemory:
    """Peak resident memory of this process and its children in MiB, sampled five times a second."""

    def __enter__(self) -> "_PeakMemory":
        self.peak_mb = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, total >> 20)
            if self._stop.wait(0.2):
                return
