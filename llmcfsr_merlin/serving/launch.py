"""Starts a tritonserver: the binary, its arguments, its environment, its private folder."""

import ctypes
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.serving.access import restrictions
from llmcfsr_merlin.serving.numpy2_stub import numpy_is_misread, write_for_numpy_2
from llmcfsr_merlin.serving.repository import EXPLAIN, FRONT, format_of, needs_gpu
from llmcfsr_merlin.serving.wire import FOLDER_VARIABLE, REQUEST_VARIABLE, SHARD_VARIABLE

# Triton pastes the paths into a bash command line, unquoted.
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")
_EXIT_SECONDS = 10


def find_tritonserver() -> Path | None:
    """The binary in PATH (Triton and Merlin containers), else the one in nvidia-pytriton; None if there is none."""
    found = shutil.which("tritonserver")
    if found:
        return Path(found)
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        return None
    binary = Path(package.submodule_search_locations[0]) / "tritonserver" / "bin" / "tritonserver"
    return binary if binary.is_file() else None


def binary_for(repository: Path) -> Path:
    """The tritonserver that can serve `repository`; MissingDependency without one, InputError without its backend."""
    binary = find_tritonserver()
    if binary is None:
        raise MissingDependency(
            "tritonserver was found neither in PATH nor in nvidia-pytriton: pip install 'llmcfsr-merlin[serve]', "
            "or run inside a Triton or Merlin container"
        )
    form = format_of(repository)
    backend = {"python": "python", "torchscript": "pytorch", "onnx": "onnxruntime"}[form]
    if _is_packaged(binary) and not (binary.parent.parent / "backends" / backend).is_dir():
        raise InputError(
            f"this repository has serve.format={form}, but the tritonserver of nvidia-pytriton has no {backend} "
            "backend: serve it in a Triton or Merlin container, or export with serve.format=python"
        )
    return binary


def check_shard(repository: Path, shard: tuple[int, int] | None) -> None:
    """InputError if the repository holds a graph, which ranks the whole catalogue."""
    if shard is not None and (form := format_of(repository)) != "python":
        raise InputError(f"--shard: expected a repository of serve.format=python, found {form}: export anew")


def check_device(repository: Path) -> None:
    """InputError if the repository was exported for GPUs and the driver shows none."""
    if needs_gpu(repository) and not _gpus():
        raise InputError(
            f"{repository} was exported with serve.device=gpu, and this machine shows no GPU: serve it on one, or "
            "`llmcfsr export` with serve.device=cpu or auto"
        )


def _gpus() -> int:
    """GPUs that the driver shows to this process (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return 0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value
    except (OSError, AttributeError):
        return 0


def private_folder(repository: Path, binary: Path) -> Path:
    """A new folder (0700) with a link to `repository` and the server's other files, all with plain names."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="llmcfsr-triton-"))
        if not _PLAIN.fullmatch(str(folder)):  # TMPDIR
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="llmcfsr-triton-", dir="/tmp"))
        (folder / "repository").symlink_to(repository)
        if _is_packaged(binary):
            _private_backends(binary, folder)
    except OSError as error:
        raise InputError(
            f"the server's own folder cannot be written ({error.strerror}: {error.filename or tempfile.tempdir}): free "
            "space there, or set TMPDIR to a folder that you may write to"
        ) from error
    return folder


def command(binary: Path, folder: Path, address: str, ports: dict[str, int], key: str) -> list[str]:
    """The server's command line. `folder`: of private_folder()."""
    line = [str(binary), *restrictions(key), "--id", folder.name]
    line += ["--model-repository", str(folder / "repository"), "--model-control-mode", "explicit"]
    for model in (FRONT, EXPLAIN):  # an ensemble loads its steps
        if (folder / "repository" / model).is_dir():
            line += ["--load-model", model]
    for name, port in ports.items():
        line += [f"--{name}-address", address, f"--{name}-port", str(port)]
    line += ["--metrics-interval-ms", "1000", "--exit-timeout-secs", str(_EXIT_SECONDS)]
    line += ["--backend-config", f"python,shm-region-prefix-name={shm_prefix(folder)}"]
    if _is_packaged(binary):
        line += ["--backend-directory", str(folder / "backends")]
    return line


def environment(
    binary: Path,
    folder: Path,
    request_id: str,
    log_requests: bool,
    threads: int | None,
    shard: tuple[int, int] | None = None,
) -> dict[str, str]:
    """The environment of the server and of its python steps."""
    found = {name: value for name, value in os.environ.items() if name != SHARD_VARIABLE}
    if shard is not None:
        found[SHARD_VARIABLE] = f"{shard[0]}/{shard[1]}"
    # The stub ignores PYTHONPATH and finds the virtual environment through PATH.
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", "")])
    if _is_packaged(binary):
        # The stub finds the wheel's own libraries relative to its place, where it is a link.
        own = binary.parents[3] / "nvidia_pytriton.libs"
        libraries = [sysconfig.get_config_var("LIBDIR"), str(own), found.get("LD_LIBRARY_PATH")]
        found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    found |= {FOLDER_VARIABLE: str(folder), REQUEST_VARIABLE: request_id}
    found["LLMCFSR_LOG_REQUESTS"] = "1" if log_requests else "0"
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    return found


def shm_prefix(folder: Path) -> str:
    """Name prefix of the server's shared-memory regions."""
    return f"{folder.name}_"


def _is_packaged(binary: Path) -> bool:
    return (binary.parent.parent / "python_backend_stubs").is_dir()


def _private_backends(binary: Path, folder: Path) -> None:
    """nvidia-pytriton's python backend with this Python's stub, in our own folder: site-packages is not modified."""
    root = binary.parent.parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise InputError(f"nvidia-pytriton has no python backend for Python {sys.version.split()[0]}: expected {stub}")
    target = folder / "backends" / "python"
    target.mkdir(parents=True)
    for source in (root / "backends" / "python").iterdir():
        if source.is_file():
            shutil.copy2(source, target / source.name)
    if numpy_is_misread():
        write_for_numpy_2(stub, target / stub.name)
    else:
        (target / stub.name).symlink_to(stub)
