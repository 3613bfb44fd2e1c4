"""A real tritonserver on this machine: found, started, waited for and stopped cleanly."""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from llmcfsr_merlin.errors import InputError, MissingDependency
from llmcfsr_merlin.serving.repository import FRONT, format_of, layout


def find_tritonserver() -> Path | None:
    """The binary in PATH (Triton and Merlin containers), else the one in nvidia-pytriton; None where there is none."""
    found = shutil.which("tritonserver")
    if found:
        return Path(found)
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        return None
    binary = Path(package.submodule_search_locations[0]) / "tritonserver" / "bin" / "tritonserver"
    return binary if binary.is_file() else None


class Server:
    """Context manager that owns a tritonserver of one model repository.

    >>> with Server("runs/demo/export/model_repo") as server:      # doctest: +SKIP
    ...     Client(server.grpc_url).recommend([["B00A"]], k=5)

    host: loopback by default, so that nothing is reachable from outside. Ports 0: free ones are taken. Raises
    InputError with the end of the server's log when it does not get ready within `timeout` seconds.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        timeout: float = 120.0,
        log_requests: bool = False,
        threads: int | None = None,
    ):
        self.repository = Path(repository).absolute()
        self.host, self.timeout, self.log_requests, self.threads = host, timeout, log_requests, threads
        self._ports = [http_port, grpc_port, metrics_port]
        self._process: subprocess.Popen | None = None

    @property
    def http_url(self) -> str:
        return f"http://{self._reach}:{self._ports[0]}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self._reach}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reach}:{self._ports[2]}/metrics"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self._log.read_text(errors="replace") if self._log.is_file() else ""

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> "Server":
        layout(self.repository)
        binary = find_tritonserver()
        if binary is None:
            raise MissingDependency(
                "tritonserver was found neither in PATH nor in nvidia-pytriton: pip install 'llmcfsr-merlin[serve]', "
                "or run inside a Triton or Merlin container"
            )
        form = format_of(self.repository)
        backend = {"python": "python", "torchscript": "pytorch", "onnx": "onnxruntime"}[form]
        if _is_packaged(binary) and not (binary.parent.parent / "backends" / backend).is_dir():
            raise InputError(
                f"this repository has serve.format={form}, but the tritonserver of nvidia-pytriton has no {backend} "
                "backend: serve it in a Triton or Merlin container, or export with serve.format=python"
            )
        self._ports = [port or _free_port(self.host) for port in self._ports]
        self._folder = Path(tempfile.mkdtemp(prefix="llmcfsr-triton-"))
        self._log = self._folder / "server.log"
        try:
            environment = self._environment(binary)
            with open(self._log, "wb") as log:
                # A session of its own: the stubs are stopped as one group, and Ctrl-C reaches us first.
                self._process = subprocess.Popen(
                    self._command(binary),
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=_end_with_parent if threading.current_thread() is threading.main_thread() else None,
                )
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """SIGTERM, after 15 seconds SIGKILL; then what the python backend leaves behind is removed."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the group: also stubs whose server died
            process.wait()
        for leftover in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> int:
        """Block until the server ends; its exit code."""
        return self._process.wait()

    def reload(self) -> None:
        """Load what publish() added. Requests in flight are answered by the version before."""
        # Steps first: asked for the ensemble alone, Triton was seen to refuse it while its steps changed version.
        models = ["encode", "rank", "decode", FRONT] if layout(self.repository) == "ensemble" else [FRONT]
        for model in models:
            request = urllib.request.Request(f"{self.http_url}/v2/repository/models/{model}/load", data=b"{}")
            try:
                urllib.request.urlopen(request, timeout=self.timeout).close()
            except urllib.error.HTTPError as error:
                raise InputError(f"{model} did not load: {error.read().decode(errors='replace')[:500]}") from error
            except OSError as error:  # no answer in time, or no server
                raise InputError(f"{model} did not load within {self.timeout:.0f} s ({error}): reload again") from error

    @property
    def _reach(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host

    @property
    def _shm_prefix(self) -> str:
        return f"{self._folder.name}_"

    def _command(self, binary: Path) -> list[str]:
        http, grpc, metrics = map(str, self._ports)
        repository = self.repository
        if any(letter.isspace() for letter in str(repository)):
            # Triton passes the path to its python stubs unquoted: with a space in it they never start.
            repository = self._folder / "repository"
            repository.symlink_to(self.repository)
        command = [str(binary), "--model-repository", str(repository), "--model-control-mode", "explicit"]
        command += ["--load-model", FRONT]  # an ensemble loads its steps
        command += ["--http-address", self.host, "--http-port", http, "--grpc-address", self.host, "--grpc-port", grpc]
        command += ["--metrics-address", self.host, "--metrics-port", metrics, "--metrics-interval-ms", "1000"]
        command += ["--backend-config", f"python,shm-region-prefix-name={self._shm_prefix}"]
        if _is_packaged(binary):
            command += ["--backend-directory", str(_private_backends(binary, self._folder))]
        return command

    def _environment(self, binary: Path) -> dict[str, str]:
        environment = dict(os.environ)
        # The stub ignores PYTHONPATH and finds the virtual environment through PATH.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        if _is_packaged(binary):
            libraries = [sysconfig.get_config_var("LIBDIR"), environment.get("LD_LIBRARY_PATH")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        environment["LLMCFSR_LOG_REQUESTS"] = "1" if self.log_requests else "0"
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment

    def _wait(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise InputError(f"tritonserver ended with code {self._process.returncode}. {self._reason()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2):
                return
            time.sleep(0.1)
        raise InputError(f"tritonserver was not ready after {self.timeout:.0f} s. {self._reason()}")

    def _reason(self) -> str:
        lines = self.log.splitlines()
        named = [
            line for line in lines if "InputError" in line or "failed to load" in line or "error while loading" in line
        ]
        return "Its log says: " + " | ".join((named or lines)[-4:])[-1500:]


def serve(repository: str | Path, **options) -> int:
    """Serve in the foreground until SIGINT or SIGTERM; for `llmcfsr serve`. Options as in Server."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        with Server(repository, **options) as server:
            print(f"ready: {server.http_url} {server.grpc_url} metrics {server.metrics_url}", flush=True)
            code = server.wait()
            raise InputError(f"tritonserver ended with code {code}. {server._reason()}")
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the parent dies, even by SIGKILL (Linux: when the starting thread ends)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _is_packaged(binary: Path) -> bool:
    return (binary.parent.parent / "python_backend_stubs").is_dir()


def _private_backends(binary: Path, folder: Path) -> Path:
    """nvidia-pytriton's python backend with this Python's stub, in a folder of ours: site-packages stays as it is."""
    root = binary.parent.parent
    stub = (
        root
        / "python_backend_stubs"
        / f"{sys.version_info.major}.{sys.version_info.minor}"
        / "triton_python_backend_stub"
    )
    if not stub.is_file():
        raise InputError(f"nvidia-pytriton has no python backend for Python {sys.version.split()[0]}: expected {stub}")
    target = folder / "backends" / "python"
    target.mkdir(parents=True)
    for source in (root / "backends" / "python").iterdir():
        if source.is_file():
            shutil.copy2(source, target / source.name)
    # A link, not a copy: the stub finds the wheel's own libraries relative to its real place.
    (target / stub.name).symlink_to(stub)
    return target.parent


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
