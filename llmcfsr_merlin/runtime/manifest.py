"""Manifests of finished stages, and the check that their files are unchanged."""

import hashlib
import json
import platform
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from llmcfsr_merlin import __version__
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import CHECKSUMS, Checksums, open_to_umask, sha256_file, sync, write_json
from llmcfsr_merlin.runtime.layout import BASELINES, CARD, FORMATS, RECORD, STAGES, UPDATE

MANIFEST = "manifest.json"
KEY = ".key"  # the stage's key, in a directory that the stage is still working on
ATTEMPTS = ".attempts"  # beside it: the time that attempts at the stage have taken so far
# Packages whose version can change a stage's output.
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


def hash_json(value: object) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage.

    `key` hashes its configuration and inputs, `counts` holds what the stage reports (rows in, dropped, out, ...),
    `files` maps each file (relative path) to its sha256, `seconds` is the wall time of all attempts and
    `peak_memory_mb` the peak resident memory of the process and its children while it ran. `inputs`: the identity of
    each input stage. `format`: of what it wrote, as in layout.FORMATS.
    """

    stage: str
    key: str
    counts: dict = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mb: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    format: int = 1  # of manifests without one

    @property
    def identity(self) -> str:
        """A hash of the key and of all files: changes whenever anything in the directory changes."""
        return hash_json([self.key, self.files])

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Read a stage's manifest; InputError if there is none or it cannot be read."""
        directory = Path(directory)
        path = directory / MANIFEST
        if not path.is_file():
            command = _command(directory) or f"`llmcfsr {_verb(directory)}`"
            raise InputError(f"expected a finished stage in {directory}, found no {MANIFEST}: run {command} first")
        try:
            manifest = cls(**json.loads(path.read_text()))
            if not isinstance(manifest.files, dict):
                raise ValueError("files is no mapping")
        except (ValueError, TypeError) as error:
            aside = "" if Checksums(directory).found else f"move {directory} away, then "
            raise InputError(
                f"{path} is not a manifest of this project ({error}): {aside}{remake(directory, directory.name)}"
            ) from error
        return manifest

    def fault(self, directory: Path, only: Iterable[str] | None = None, *, remembered: bool = False) -> str | None:
        """The first problem of the files (or of `only`), None if they are as the stage wrote them.

        Missing and changed files are found, and Parquet that was put beside that of the stage, which would be read with
        it. remembered: a file with the size, times and inode that it had when it was last hashed is not hashed again.
        """
        directory = Path(directory)
        if not self.files:
            return f"{directory} was sealed without files"
        checksums = Checksums(directory) if remembered else None
        checked = [name for name in self.files if name != CARD] if only is None else list(only)
        for name in checked:
            path = directory / name
            if name not in self.files or not path.is_file():
                return f"{path} is missing or not listed in its {MANIFEST}"
            if (checksums.sha256(name) if checksums else sha256_file(path)) != self.files[name]:
                return f"{path} was changed after it was written (sha256 differs)"
        for folder in {(directory / name).parent for name in checked if name.endswith(".parquet")}:
            for path in folder.glob("[!.]*.parquet"):
                if str(path.relative_to(directory)) not in self.files:
                    return f"{path} was not written by the stage that wrote its folder"
        if checksums:
            checksums.save()
        return None

    def check_format(self, directory: Path) -> None:
        """InputError if this version would misread the directory because its format differs."""
        if self.format != (today := format_of(self.stage)):
            raise InputError(
                f"{directory} was written by version {self.versions.get('llmcfsr-merlin', 'unknown')} in format "
                f"{self.format}, this version {__version__} reads {today}: {remake(Path(directory), self.stage)}"
            )

    def below(self, *prefixes: str) -> list[str]:
        """The files whose relative path starts with one of these; all files if none is given."""
        return [name for name in self.files if not prefixes or name.startswith(prefixes)]

    def verify(self, directory: Path, only: Iterable[str] | None = None, *, remembered: bool = False) -> None:
        """Check every file (or `only`) before it is loaded, as in `fault`; InputError names the first bad one."""
        if found := self.fault(directory, only, remembered=remembered):
            raise InputError(f"{found}: {remake(Path(directory), self.stage)}")


def seal(
    directory: Path,
    stage: str,
    key: str,
    counts: dict,
    seconds: float = 0.0,
    peak_memory_mb: int = 0,
    inputs: dict[str, str] | None = None,
) -> Manifest:
    """Write the manifest of a complete directory: sha256 of each file in it, versions, counts.

    The files are synced first and get the modes that the umask says. InputError if there are none.
    """
    directory = Path(directory)
    open_to_umask(directory)
    names = [str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if path.is_file()]
    names = [name for name in names if name not in (MANIFEST, CHECKSUMS, KEY, ATTEMPTS)]
    if not names:
        raise InputError(f"expected files of stage {stage} in {directory}, found none: run the same command again")
    for name in names:
        sync(directory / name)
    checksums = Checksums(directory)
    files = {name: checksums.sha256(name) for name in names}
    checksums.save()
    manifest = Manifest(
        stage, key, counts, files, _versions(), round(seconds, 2), peak_memory_mb, inputs or {}, format_of(stage)
    )
    write_json(directory / MANIFEST, asdict(manifest))
    sync(directory)
    return manifest


def format_of(stage: str) -> int:
    """The current format of a stage; any other name belongs to a baseline, which train writes."""
    return FORMATS.get(stage, FORMATS["train"])


def remake(directory: Path, stage: str, force: bool = False) -> str:
    """The command that rewrites a stage's directory; it can be copied as it is if the run's settings are known.

    force: for unchanged files. A stage whose files changed runs again without it.
    """
    directory = Path(directory)
    if command := _command(directory, force):
        return f"run {command}"
    return f"rewrite it with the command that wrote it ({directory.name if directory.name in STAGES else stage})"


def _command(directory: Path, force: bool = False) -> str | None:
    """The command that writes a stage's directory, in backquotes; None if the run's settings are unknown."""
    for run in list(directory.absolute().parents)[:6]:
        below = directory.absolute().relative_to(run).parts[0]
        if (command := updated_by(run)) is not None:
            return f"`{command}`"
        if (run / RECORD).is_file() and below in (*STAGES, BASELINES):
            shown = shlex.quote(str(_shown(directory, run)))
            record = shlex.quote(str(_shown(directory, run) / RECORD))
            return f"`llmcfsr {_verb(run / below)} {record} --run {shown}{' --force' if force else ''}`"
    return None


def updated_by(run: Path) -> str | None:
    """The `llmcfsr update` that made a run directory, None if another command did."""
    try:
        return json.loads((run / UPDATE).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shown(directory: Path, run: Path) -> Path:
    """The run directory as the user wrote it, if the stage's directory was given below it."""
    for parent in directory.parents:
        if parent.absolute() == run:
            return parent
    return run


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
