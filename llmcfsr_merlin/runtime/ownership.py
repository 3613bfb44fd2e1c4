"""Decides which folders may be replaced. Files that this project did not write are never removed, only kept aside."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import CHECKSUMS, Checksums, remove
from llmcfsr_merlin.runtime.manifest import KEY, MANIFEST, Manifest

_log = logging.getLogger(__name__)

MARK = ".llmcfsr"  # an empty file that marks a folder of results as this project's
_WORDS = (b'"stage"', b'"key"', b'"counts"', b'"files"', b'"versions"', b'"peak_memory_mb"')


def standing(final: Path) -> Manifest | None:
    """The manifest of the stage in a folder; None if there is no stage, or none whose manifest can be read.

    Raises InputError if the folder is not of this project.
    """
    if not final.exists():
        return None
    if not final.is_dir():
        raise InputError(f"expected a folder at {final}, found a file: move it away or choose another --run")
    if not any(final.iterdir()):
        return None
    try:
        return Manifest.load(final)
    except InputError as error:
        if _was_manifest(final / MANIFEST) or Checksums(final).found:
            return None
        raise InputError(
            f"{final} holds files but no {MANIFEST} of this project, so it is not replaced: move it away or choose "
            "another --run"
        ) from error


def claim(partial: Path) -> None:
    """InputError if a stage's working folder holds files that no stage of this project wrote."""
    if not partial.exists() or (partial.is_dir() and not any(partial.iterdir())):
        return
    if not partial.is_dir() or not ((partial / KEY).is_file() or _was_manifest(partial / MANIFEST)):
        raise InputError(
            f"{partial} is in the way and not known to be of this project: move it away or choose another --run"
        )


def discard(folder: Path, kept: Path) -> None:
    """Remove a replaced stage. Files that it did not write are kept in a folder named like `kept`, which is logged."""
    if folder.is_symlink() or not folder.is_dir():
        if os.path.lexists(folder):
            folder.unlink()
        return
    try:
        listed: Iterable[str] = Manifest.load(folder).files
    except InputError:
        listed = ()
    inside = folder.resolve()
    for name in (*listed, CHECKSUMS):
        path = folder / name
        if path.parent.resolve().is_relative_to(inside):
            path.unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):  # deepest first
        if path.is_dir() and not path.is_symlink():
            if path.name == "__pycache__":
                remove(path)
            elif not any(path.iterdir()):
                path.rmdir()
        elif path.name == MANIFEST and path.parent != folder:  # of a bundle; older versions did not list it
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    if all(path.name == MANIFEST for path in folder.iterdir()) and (listed or not any(folder.iterdir())):
        remove(folder, MANIFEST)
        return
    number, place = 1, kept
    while place.exists():
        number, place = number + 1, kept.with_name(f"{kept.name}-{number}")
    folder.rename(place)
    _log.warning("%s: files that the replaced stage did not write were kept in %s", kept.stem, place)


def claim_results(folder: Path, names: Iterable[str]) -> None:
    """Make a folder ready for results of this project; InputError if files of these names there are somebody else's.

    names: glob patterns of the files to be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder at {folder}, found a file: choose another one")
    if not (folder / MARK).is_file():
        for name in names:
            if found := next(iter(folder.glob(name)), None):
                raise InputError(
                    f"{found} is not known to be of this project, so it is not replaced: move it away or choose "
                    "another folder"
                )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()


def _was_manifest(path: Path) -> bool:
    """Whether a file is a manifest of this project, possibly damaged."""
    if not path.is_file():
        return False
    raw = path.read_bytes()
    return not raw.strip(b"\0") or sum(word in raw for word in _WORDS) > 3
