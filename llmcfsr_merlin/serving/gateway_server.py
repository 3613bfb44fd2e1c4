"""The gateway as a process of its own. Its socket is kept open here: nobody is refused while it starts again."""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.serving.gateway.keys import Keys, check_exposure
from llmcfsr_merlin.serving.gateway.options import Options
from llmcfsr_merlin.serving.ports import reserve, resolve
from llmcfsr_merlin.serving.probe import probe_gateway
from llmcfsr_merlin.serving.processes import end_with_parent

_NEEDED = ("fastapi", "uvicorn", "httptools", "uvloop", "orjson", "prometheus_client", "grpc", "tritonclient")
_HUNG = 10.0  # seconds in which a gateway must say that it is alive
_PERIOD = 5.0  # seconds between two such questions


@dataclass(frozen=True)
class GatewayOptions:
    """What the command line says of a gateway. port 0: a free one; keys: a file of API keys; cors: allowed origins."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    open_to_all: bool = False
    cors: tuple[str, ...] = ()
    log_requests: bool = False
    settings: GatewayConfig = field(default_factory=GatewayConfig)


class GatewayServer:
    """Context manager that owns a gateway in front of `replicas`, host:port of their gRPC.

    repository: an export like theirs, for titles and popular items. Raises MissingDependency without the extra
    `gateway`, InputError if the port is taken, the keys cannot be read, or it does not start within `timeout` s.
    """

    def __init__(self, repository: Path, options: GatewayOptions, timeout: float = 60.0):
        check_installed()
        self.repository, self.options, self.timeout = Path(repository).absolute(), options, timeout
        if options.keys is not None:
            Keys(options.keys)
        check_exposure(options.host, options.keys, options.open_to_all)
        port = reserve(options.host, {"gateway": options.port})["gateway"]
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((resolve(options.host), port))  # not listening yet: until it is ready, it refuses
        self.port = port
        self._process: subprocess.Popen | None = None
        self._next_look = 0.0

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.options.host in ("0.0.0.0", "") else self.options.host
        return f"http://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, replicas: Sequence[str], sharded: bool = False) -> "GatewayServer":
        """Start it; returns when it answers, whether or not a replica does. sharded: as in gateway.options."""
        self._replicas, self._sharded = list(replicas), sharded
        self._launch()
        deadline, reason = time.monotonic() + self.timeout, None
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise InputError("the gateway ended while it started: the line above says why")
            if (reason := probe_gateway(f"{self.url}/health/live", 2)) is None:
                return self
            time.sleep(0.05)
        raise InputError(f"the gateway {reason} after {self.timeout:g} s: give it more by --start-timeout")

    def __enter__(self) -> "GatewayServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more requests, finish those in flight, end."""
        self._socket.close()  # first: else connections would wait in its queue for nobody
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self.options.settings.timeout + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def look(self) -> str | None:
        """Start the gateway again if it has ended or hangs; what was wrong with it."""
        if self._process is None:
            return None
        code = self._process.poll()
        reason = None if code is None else f"ended with code {code}"
        if reason is None and time.monotonic() > self._next_look:
            reason = probe_gateway(f"{self.url}/health/live", _HUNG)
            self._next_look = time.monotonic() + _PERIOD
        if reason is not None:
            self._process.kill()
            self._process.wait()
            self._launch()
        return reason

    def _launch(self) -> None:
        options = Options(
            str(self.repository), self._replicas, self._socket.fileno(), self.options.settings.model_dump(),
            None if self.options.keys is None else str(Path(self.options.keys).absolute()), list(self.options.cors),
            self.options.log_requests, self._sharded,
        )  # fmt: skip
        command = [sys.executable, "-m", "llmcfsr_merlin.serving.gateway.process", options.as_argument()]
        # A session of its own: Ctrl-C reaches us first, and what is in flight is finished.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[self._socket.fileno()], start_new_session=True,
            preexec_fn=end_with_parent(),
        )  # fmt: skip
        self._next_look = time.monotonic() + self.timeout


def check_installed() -> None:
    """MissingDependency with the command that installs what the gateway needs."""
    missing = []
    for name in _NEEDED:
        with contextlib.suppress(ImportError, ValueError):
            if importlib.util.find_spec(name) is not None:
                continue
        missing.append(name)
    if missing:
        raise MissingDependency(
            f"the gateway needs {', '.join(missing)}: pip install 'llmcfsr-merlin[gateway]', or serve Triton's own "
            "ports by --no-gateway"
        )
