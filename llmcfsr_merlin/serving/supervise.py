"""`llmcfsr serve`: a server and its gateway in the foreground, monitored, restarted if they stop answering."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.gateway_server import GatewayOptions, GatewayServer
from llmcfsr_merlin.serving.server import Server

_PERIOD = 1.0  # minimum seconds between two probe requests
_SHARE = 20  # and at least this many times the last one's duration: at most a twentieth of a core for a large catalogue
_PATIENCE = 30.0  # a server without a response for so long counts as hung
_PAUSES = (0, 1, 2, 4, 8)  # seconds before each restart attempt


def serve(repository: str | Path, gateway: GatewayOptions | None = None, **options: Any) -> int:
    """Serve in the foreground until SIGINT, SIGTERM or SIGHUP; requests in flight are finished. Options as in Server.

    gateway: of the one in front, None for Triton's own ports alone. A server or gateway that dies or stops answering is
    restarted, with a line on stderr. Raises InputError if the first start fails, or if the server cannot be restarted.
    """
    with _interrupted_by_signals(), contextlib.ExitStack() as owned:
        front = None
        if gateway is not None:  # before Triton loads: what is wrong with it is told at once
            front = owned.enter_context(GatewayServer(Path(repository), gateway, options.get("timeout", 120.0)))
        server = owned.enter_context(Server(repository, **options))
        addresses = f"{server.http_url} {server.grpc_url} metrics {server.metrics_url}"
        if front is not None:
            owned.callback(front.stop)  # before the server
            front.start([server.grpc_url.removeprefix("grpc://")])
            addresses = f"{front.url} triton {addresses}"
        print(f"ready: {addresses} key {server.key_file}", flush=True)
        while True:
            _restart(server, _next_trouble(server, lambda: _look(front)))
    return 0


def serve_gateway(
    repository: Path, replicas: Sequence[str], gateway: GatewayOptions, timeout: float, sharded: bool = False
) -> int:
    """A gateway alone in the foreground, in front of servers that others start; ended as in serve()."""
    with _interrupted_by_signals(), GatewayServer(repository, gateway, timeout) as front:
        front.start(replicas, sharded)
        print(f"ready: {front.url} {'shards' if sharded else 'replicas'} {' '.join(replicas)}", flush=True)
        while True:
            _look(front)
            time.sleep(0.1)
    return 0


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP end what is inside, which is left as if it had been finished."""

    def interrupt(*_: object) -> None:
        for ending in previous:
            signal.signal(ending, signal.SIG_IGN)  # once is enough: shutdown is in progress
        raise KeyboardInterrupt

    endings = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        endings.append(signal.SIGHUP)
    previous = {ending: signal.signal(ending, interrupt) for ending in endings}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for ending, handler in previous.items():
            signal.signal(ending, handler)


def _look(front: GatewayServer | None) -> None:
    if front is not None and (reason := front.look()) is not None:
        _say(f"the gateway {reason}: restarting it")


def _next_trouble(server: Server, meanwhile: Callable[[], None] = lambda: None) -> str:
    """Watch until something is wrong; what it is. meanwhile: called ten times a second."""
    pause = _PERIOD
    while True:
        due = time.monotonic() + pause
        while time.monotonic() < due and server.running:
            meanwhile()
            time.sleep(0.1)
        start = time.monotonic()
        reason = server.trouble(_PATIENCE)
        took = time.monotonic() - start
        if reason and server.running and took < _PATIENCE and "not healthy" not in reason:
            time.sleep(0.3)  # one failure may be transient: a model that is being reloaded
            reason = server.trouble(_PATIENCE)
        if reason:
            return reason
        pause = max(_PERIOD, _SHARE * took)


def _restart(server: Server, reason: str) -> None:
    _say(f"tritonserver {reason}: restarting it")
    start, last = time.monotonic(), None
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            server.restart()
        except InputError as error:
            last = error
            _say(str(error))
        else:
            _say(f"tritonserver answers again after {time.monotonic() - start:.1f} s")
            return
    raise InputError(f"tritonserver did not restart in {len(_PAUSES)} attempts, giving up. The last one: {last}")


def _say(text: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", file=sys.stderr, flush=True)
