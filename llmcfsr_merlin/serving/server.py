"""Manages a real tritonserver on this machine: finds, starts, awaits and stops it cleanly."""

import contextlib
import json
import logging
import re
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import launch
from llmcfsr_merlin.serving.access import HEADER, hide, write_key
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.ports import reserve, resolve
from llmcfsr_merlin.serving.probe import DIRECT, probe
from llmcfsr_merlin.serving.processes import end_with_parent, ending, kill_group
from llmcfsr_merlin.serving.repository import layout, load_order
from llmcfsr_merlin.serving.wire import STOPPING

_log = logging.getLogger(__name__)

__all__ = ["Server", "find_tritonserver"]
DRAIN_SECONDS = 15.0  # grace period of in-flight requests when the server stops


class Server:
    """Context manager that owns a tritonserver of one model repository.

    >>> with Server("runs/demo/export/model_repo") as server:      # doctest: +SKIP
    ...     Client(server.grpc_url).recommend([["B00A"]], k=5)

    host: loopback by default, so that nothing is reachable from outside. Ports 0: free ones are chosen. Everybody who
    reaches the ports may send requests; loading models, shared memory, tracing, logging and statistics need the key in
    `key_file` (generated per start, mode 0600; by default in a private folder). Raises InputError if a port is taken,
    and with the end of the server's log when it does not answer within `timeout` seconds.
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
        key_file: str | Path | None = None,
        log_requests: bool = False,
        threads: int | None = None,
        shard: tuple[int, int] | None = None,
    ):
        self.repository = Path(repository).absolute()
        self.host, self.timeout, self.log_requests, self.threads = host, timeout, log_requests, threads
        self.shard = shard
        self.key_file = Path(key_file).absolute() if key_file else None
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._folder: Path | None = None
        self._key = ""
        self._process: subprocess.Popen | None = None
        self._answers = False

    @property
    def http_url(self) -> str:
        return f"http://{self._reach}:{self.ports['http']}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self._reach}:{self.ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reach}:{self.ports['metrics']}/metrics"

    @property
    def pid(self) -> int:
        return self._started().pid

    def _started(self) -> subprocess.Popen:
        if self._process is None:
            raise InputError("expected a started server: use it as `with Server(...)`")
        return self._process

    @property
    def _private(self) -> Path:
        """The folder of this start: repository, log and key."""
        if self._folder is None:
            raise InputError("expected a started server: use it as `with Server(...)`")
        return self._folder

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """The server's output since its last start."""
        path = self._folder and self._folder / "server.log"
        return path.read_text(errors="replace") if path and path.is_file() else ""

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "Server":
        layout(self.repository)
        launch.check_device(self.repository)
        launch.check_shard(self.repository, self.shard)
        self._binary = launch.binary_for(self.repository)
        if self.timeout <= 0:
            raise InputError(f"--start-timeout: expected more than 0 seconds, found {self.timeout:g}")
        self._address = resolve(self.host)
        self.ports = reserve(self.host, self.ports)
        try:
            self._folder = launch.private_folder(self.repository, self._binary)
            self.key_file = self.key_file or self._folder / "key"
            self._key = write_key(self.key_file)
            self._request_id = secrets.token_hex(16)
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def restart(self) -> None:
        """Kill the server, responsive or not, and start it on the same ports with the same key."""
        self._kill()
        self._launch()

    def stop(self) -> None:
        """Refuse new requests, finish those in flight (at most DRAIN_SECONDS), stop the server, clean up."""
        if self.running and self._answers:
            self._drain()
        self._kill()
        with contextlib.suppress(OSError):
            if self._key and self.key_file and self._key in self.key_file.read_text():  # and not that of another server
                self.key_file.unlink()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def trouble(self, timeout: float) -> str | None:
        """None if the server answers a real request, else the reason."""
        code = self._started().poll()
        if code is not None:
            return f"ended {ending(code)}"
        reason = probe(self.http_url, timeout, self._request_id)
        code = self._started().poll()
        return reason if code is None or reason is None else f"ended {ending(code)}"

    def reload(self) -> None:
        """Load the version that publish() added. Requests in flight are answered by the previous version."""
        load_version(self.http_url, self._key, self.repository, self.timeout)

    @property
    def _reach(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host

    def _launch(self) -> None:
        with open(self._private / "server.log", "wb") as log:
            # Its own session: the stubs are stopped as one group, and Ctrl-C reaches us first.
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=launch.environment(
                    self._binary, self._private, self._request_id, self.log_requests, self.threads, self.shard
                ),
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        self._wait()

    def _command(self) -> list[str]:
        return launch.command(self._binary, self._private, self._address, self.ports, self._key)

    def _wait(self) -> None:
        deadline = time.monotonic() + self.timeout
        hidden, reason = False, None
        while time.monotonic() < deadline:
            code = self._started().poll()
            if code is not None:
                raise InputError(f"tritonserver ended {ending(code)}. {self.reason()}")
            if not hidden and self.log:
                hidden = True
                if not hide(self.pid, self._key):
                    _log.warning("`ps` shows the server's key to every user of this machine")
            if self._is_ours():
                reason = self.trouble(max(deadline - time.monotonic(), 0.1))
                if reason is None:
                    self._answers = True
                    return
            time.sleep(0.1)
        raise InputError(
            f"tritonserver {reason or 'was not ready'} after {self.timeout:g} s: allow more with --start-timeout. "
            f"{self.reason()}"
        )

    def _is_ours(self) -> bool:
        """Whether our process listens on the ports: another server could have taken them meanwhile."""
        try:
            with DIRECT.open(f"{self.http_url}/v2", timeout=2) as reply:
                named = json.load(reply).get("name")
            with DIRECT.open(self.metrics_url, timeout=2):  # the port that Triton opens last
                return named == self._private.name and self.running
        except (OSError, ValueError):
            return False

    def _drain(self) -> None:
        """Finish the requests received so far, refuse new ones at the first step, then finish those received meanwhile.

        Queues keep their order, so our own request is answered after all earlier ones.
        """
        until = time.monotonic() + DRAIN_SECONDS
        probe(self.http_url, DRAIN_SECONDS, self._request_id)
        with contextlib.suppress(OSError):
            (self._private / STOPPING).touch()
        start = time.monotonic()
        if start < until:
            probe(self.http_url, until - start, self._request_id)
            # Time for other instances of a step, and for responses on their way out.
            time.sleep(min(0.1 + 2 * (time.monotonic() - start), 5.0))

    def _kill(self) -> None:
        process, self._process, self._answers = self._process, None, False
        if process is None:
            return
        kill_group(process)  # also stubs whose server died; Triton has no state that an orderly shutdown would save
        for leftover in Path("/dev/shm").glob(f"{launch.shm_prefix(self._private)}*"):
            leftover.unlink(missing_ok=True)

    def reason(self) -> str:
        """The log lines that explain why the server failed."""
        text = self.log.replace(str(self._private / "repository"), str(self.repository))
        lines = text.splitlines()
        if "unrecognized option" in text or "unknown option" in text.lower():
            return "It does not know an option: expected tritonserver 2.51 (container 24.10) or newer"
        if message := _MESSAGE.search(text):  # from one of our steps; Triton repeats it several times, with a traceback
            return f"A step says: {message.group(1)}"
        words = ("InputError", "failed to load", "error while loading", "in use")
        return "Its log says: " + " | ".join(([x for x in lines if any(w in x for w in words)] or lines)[-4:])[-1500:]


def load_version(http_url: str, key: str, repository: Path, timeout: float = 120.0) -> None:
    """Have a server load the version that publish() added to its repository; InputError if it does not.

    key: of the file that the server's start names. Until the last model is loaded the version before answers.
    """
    for model in load_order(repository):
        url = f"{http_url}/v2/repository/models/{model}/load"
        request = urllib.request.Request(url, data=b"{}", headers={HEADER: key})
        try:
            DIRECT.open(request, timeout=timeout).close()
        except urllib.error.HTTPError as error:
            raise InputError(f"{model} did not load: {error.read().decode(errors='replace')[:500]}") from error
        except OSError as error:  # no answer in time, or no server
            raise InputError(f"{model} did not load within {timeout:.0f} s ({error}): reload again") from error


# Triton writes the line ends of a step's error as backslash and n.
_MESSAGE = re.compile(r"InputError: (.+?)(?:\\n|$)", re.MULTILINE)
