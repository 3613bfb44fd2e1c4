"""Files that are complete or absent, readable as the umask says, and hashed once."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

CHECKSUMS = "checksums.json"  # in a stage's directory: hashes, with each file's size and times
_TEMPORARY = re.compile(r"\..+\.\d+")  # .<name>.<process>: temporary names of all writers in this project


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """fsync a file or folder; file systems that cannot sync folders are ignored."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` at the end; nothing is left of a block that fails.

    durable: brought to the disk before, so that a machine that stops leaves the old file or the new one.
    """
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole and durable."""
    with whole(path, durable=True) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def save_tensors(tensors: Mapping, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors (all of torch or all of numpy) as safetensors, whole and durable."""
    of_numpy = all(type(tensor).__module__ == "numpy" for tensor in tensors.values())
    save_file = import_module("safetensors.numpy" if of_numpy else "safetensors.torch").save_file
    with whole(path, durable=True) as temporary:
        save_file(dict(tensors), str(temporary), metadata=metadata)
        temporary.chmod(_new_file_mode(temporary.parent))  # safetensors writes 0600


def remove_temporary(directory: Path, *, below: bool = True) -> None:
    """Remove the temporary files that a killed process left in a directory and below it."""
    for path in directory.rglob(".*") if below else directory.glob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def open_to_umask(directory: Path) -> None:
    """Give the files and folders below a directory the modes of newly created ones.

    Some libraries write temporary files with mode 0600, which other users cannot read after the rename.
    """
    mode = _new_file_mode(directory)
    for path in directory.rglob("*"):
        if not path.is_symlink():
            found = path.stat().st_mode
            wanted = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
            if found & 0o777 != wanted:
                path.chmod(found & 0o7000 | wanted)


def _new_file_mode(directory: Path) -> int:
    """Reading the umask means setting it, for all threads; a new file also reflects the folder's own rules."""
    probe = directory / f".umask.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink(missing_ok=True)


def remove(path: Path, last: str | None = None) -> None:
    """Remove a folder and its contents, the file `last` at the end: it identifies an interrupted removal."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    for child in path.iterdir() if path.is_dir() else ():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != last:
            child.unlink()
    if last:
        (path / last).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        path.rmdir()


class Checksums:
    """sha256 of the files of a directory; unchanged files are not hashed again.

    Unchanged: same size, mtime and ctime (nanoseconds) and inode.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._known: dict[str, list] = {}
        self._changed = False
        try:
            known = json.loads((self.directory / CHECKSUMS).read_text())
            self._known = {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 5}
        except (OSError, ValueError, AttributeError):
            pass

    @property
    def found(self) -> bool:
        """Whether the record exists: then the directory was written by this project."""
        return bool(self._known)

    def sha256(self, name: str) -> str:
        """sha256 of the file `name` (a relative path)."""
        status = os.stat(self.directory / name)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = self._known.get(name)
        if entry is None or entry[:4] != state:
            entry = [*state, sha256_file(self.directory / name)]
            self._known[name], self._changed = entry, True
        return entry[4]

    def save(self) -> None:
        """Store the record; a directory that cannot be written is hashed again next time."""
        if self._changed:
            with suppress(OSError):
                write_json(self.directory / CHECKSUMS, self._known)
