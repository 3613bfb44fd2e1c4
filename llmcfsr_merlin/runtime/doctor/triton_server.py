"""tritonserver, its client, and the stub in which its python backend runs."""

import ctypes
import shutil
import sys
import sysconfig
from pathlib import Path

from llmcfsr_merlin.runtime.doctor.check import PIP, Check, Version, located
from llmcfsr_merlin.runtime.supported import PYTRITON_SERVER, TRITON_CVES, fits


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


def check_triton(version: Version, python: tuple[int, ...]) -> list[Check]:
    fix = f"{PIP} 'nvidia-pytriton==0.5.14' 'tritonclient[grpc,http]==2.66.0'"
    if python >= (3, 12):  # its metadata requires numpy 1
        fix = f"{PIP} 'tritonclient[grpc,http]==2.73.0' && {PIP} --no-deps 'nvidia-pytriton==0.7.0'"
    found = version("tritonclient")
    client = Check("tritonclient", "ok", found) if found else Check("tritonclient", "error", "not installed", fix)
    if path := shutil.which("tritonserver"):
        found = _triton_version(Path(path))
        return [client, Check("tritonserver", "ok", f"{found or 'of unknown version'}, {path}"), *_triton_cves(found)]
    package = located("pytriton")
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
