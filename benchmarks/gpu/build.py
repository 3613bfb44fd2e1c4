"""Build what a bare GPU machine needs to run this project: `make gpu-kit`. It needs no GPU, but the package index.

    python benchmarks/gpu/build.py [--arch 90] [--out build/gpu-kit]

OUT/1: libcudf with the code of one GPU architecture (prune.py), and the Python packages that the machine lacks.
OUT/2: the rest of RAPIDS. Each folder and the repository travel together in one copy, so both sizes are checked.
Downloads and wheels stay in OUT/cache: a second build makes only what changed. Two cores take five minutes at first.
PYTHON312 names a Python 3.12 with pip and venv, if none is found: its extension modules are built for it.
"""

import argparse
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.prune import prune  # noqa: E402

MIB = 1 << 20
FOLDER_LIMIT = 60 * MIB
COPY_LIMIT = 64 * MIB  # a folder and the repository
_GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # pip matches a platform exactly
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
TARGET = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
TARGET += [word for platform in _PLATFORMS for word in ("--platform", platform)]
QUIET = ["-q", "--disable-pip-version-check", "--no-deps"]
BUILD_TOOLS = ("pip<26.3", "setuptools<81", "wheel", "pybind11", "numpy", "cython")


def build(out: Path, arch: int) -> None:
    """Make both folders; nothing is done for one whose inputs have not changed."""
    cache = out / "cache"
    rapids, sources, others = (HERE / f"requirements-{name}.txt" for name in ("rapids", "source", "python"))
    python = find_python()
    wheels = {
        "rapids": cached(cache, "rapids", [rapids], lambda into: download(python, rapids, into)),
        "python": cached(cache, "python", [others], lambda into: download(python, others, into)),
        "source": cached(cache, "source", [sources], lambda into: from_source(python, sources, into)),
    }
    site = cached(cache, "rapids-site", [rapids], lambda into: install(python, into, wheels["rapids"]))
    libraries = cached(cache, f"sm_{arch}", [rapids, HERE / "prune.py"], lambda into: pruned(site, into, arch))
    for number, inputs in ((1, [others, sources]), (2, [])):
        packed = cached(
            cache, f"folder-{number}-sm_{arch}", [rapids, HERE / "prune.py", HERE / "build.py", *inputs],
            lambda into, number=number: pack(number, into, python, site, libraries, wheels),
        )  # fmt: skip
        shutil.rmtree(out / str(number), ignore_errors=True)
        shutil.copytree(packed, out / str(number))
    for number in (1, 2):
        check_size(out / str(number), repository_size(ROOT))
        print(f"{out / str(number)}: {size(out / str(number)) / MIB:.1f} MiB")


def find_python() -> str:
    """A Python 3.12 that runs and has pip and venv; a line and exit code 1 if there is none."""
    named = os.environ.get("PYTHON312")
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob("3.12*/bin/python"), reverse=True)
    for candidate in [named] if named else [sys.executable, "/usr/bin/python3.12", "python3.12", *map(str, pyenv)]:
        code = "import sys, pip, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))"
        try:  # pyenv's shim is on the path and fails
            if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    sys.exit(f"expected a Python 3.12 with pip and venv, found none ({named or 'PYTHON312 is not set'}): set PYTHON312")


def cached(cache: Path, name: str, inputs: list[Path], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, made anew if one of the input files changed; whole or not there."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    if not folder.is_dir():
        for old in cache.glob(f"{name}-{'?' * 12}"):
            shutil.rmtree(old)
        cache.mkdir(parents=True, exist_ok=True)
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as partial:
            make(Path(partial, "made"))
            Path(partial, "made").rename(folder)
    return folder


def pip(python: str, *words: object) -> None:
    """Run pip; one line and exit code 1 if it fails, below what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}  # make's, for .venv
    if subprocess.run([python, "-m", "pip", *map(str, words)], env=environment, check=False).returncode:
        sys.exit(f"pip {words[0]} failed (above): is the package index reachable?")


def download(python: str, requirements: Path, into: Path) -> None:
    """Wheels for the GPU machine, which need not be this one's."""
    pip(python, "download", *QUIET, *TARGET, "-d", into, "-r", requirements)


def from_source(python: str, requirements: Path, into: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([python, "-m", "venv", scratch], check=True)
        builder = str(Path(scratch, "bin", "python"))
        pip(builder, "install", "-q", "--disable-pip-version-check", *BUILD_TOOLS)
        pip(builder, "wheel", *QUIET, "--no-build-isolation", "-w", into, "-r", requirements)


def install(python: str, into: Path, *wheels: Path) -> None:
    files = [path for folder in wheels for path in sorted(folder.glob("*.whl"))]
    # linux_x86_64: what from_source built here.
    options = [*QUIET, *TARGET, "--platform", "linux_x86_64", "--no-index", "--no-compile"]
    pip(python, "install", *options, "--target", into, *files)


def pruned(site: Path, into: Path, arch: int) -> None:
    """libcudf.so and libnvcomp.so with the code of one architecture; libcudf compressed, for it is most of a copy."""
    into.mkdir()
    cudf, nvcomp = libraries_of(site)
    for path in (cudf, nvcomp):
        print(f"  {path.name}: {prune(path, into / path.name, arch)}", flush=True)
    with open(into / cudf.name, "rb") as source, lzma.open(into / f"{cudf.name}.xz", "wb", preset=6) as target:
        shutil.copyfileobj(source, target, 4 * MIB)
    (into / cudf.name).unlink()


def libraries_of(site: Path) -> tuple[Path, Path]:
    """libcudf and libnvcomp in an installed RAPIDS."""
    return next(site.glob("libcudf/**/libcudf.so")), next(
        path for path in sorted(site.glob("nvidia/**/libnvcomp.so*")) if not path.is_symlink()
    )


def pack(number: int, into: Path, python: str, site: Path, libraries: Path, wheels: dict[str, Path]) -> None:
    """One folder: 1 with libcudf and the Python packages, 2 with the rest of RAPIDS."""
    into.mkdir()
    cudf, nvcomp = libraries_of(site)
    if number == 1:
        shutil.copyfile(libraries / f"{cudf.name}.xz", into / "libcudf.so.xz")
        (into / "libcudf.path").write_text(f"{cudf.relative_to(site)}\n")
        with tempfile.TemporaryDirectory() as scratch:
            install(python, Path(scratch, "site"), wheels["source"], wheels["python"])
            archive(Path(scratch, "site"), into / "python.tar.xz", {})
    else:
        archive(site, into / "rapids.tar.xz", {nvcomp: libraries / nvcomp.name, cudf: None})


def archive(folder: Path, target: Path, replaced: dict[Path, Path | None]) -> None:
    """A tar of a folder without headers and tests; `replaced`: a file and the one to take, None to leave it out."""
    with tarfile.open(target, "w:xz", preset=6) as tar:
        for path in files_of(folder):
            source = replaced.get(path, path)
            if source is not None:
                tar.add(source, path.relative_to(folder), recursive=False)


def files_of(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        headers = "include" in inside or (inside[0] == "lib64")
        if not headers and "__pycache__" not in inside and (path.is_symlink() or not path.is_dir()):
            yield path


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def repository_size(root: Path) -> int:
    """Bytes of what travels beside a folder: tracked files, and untracked ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-zco", "--exclude-standard"], capture_output=True, check=False
    ).stdout
    paths = [root / os.fsdecode(name) for name in set(listed.split(b"\0")) if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def check_size(folder: Path, beside: int) -> None:
    """Exit with one line if a folder is over its limit, alone or in one copy with `beside` bytes."""
    found = size(folder)
    largest = ", ".join(
        f"{path.name} {path.stat().st_size / MIB:.1f}"
        for path in sorted(folder.rglob("*"), key=lambda path: -path.stat().st_size)[:2]
    )
    if found > FOLDER_LIMIT:
        sys.exit(f"{folder}: expected at most {FOLDER_LIMIT // MIB} MiB, found {found / MIB:.1f} ({largest})")
    if found + beside > COPY_LIMIT:
        sys.exit(
            f"{folder}: expected at most {COPY_LIMIT // MIB} MiB with the repository, found {found / MIB:.1f} "
            f"({largest}) and {beside / MIB:.1f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten: 80 A100, 90 H100 and H200")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-kit")
    chosen = parser.parse_args()
    build(chosen.out, chosen.arch)
