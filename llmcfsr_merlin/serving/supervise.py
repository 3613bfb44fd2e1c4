"""`llmcfsr serve`: a server in the foreground, monitored by real requests and restarted if it stops answering."""

import signal
import sys
import time
from datetime import datetime
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.server import Server

_PERIOD = 1.0  # minimum seconds between two probe requests
_SHARE = 20  # and at least this many times the last one's duration: at most a twentieth of a core for a large catalogue
_PATIENCE = 30.0  # a server without a response for so long counts as hung
_PAUSES = (0, 1, 2, 4, 8)  # seconds before each restart attempt


def serve(repository: str | Path, **options) -> int:
    """Serve in the foreground until SIGINT, SIGTERM or SIGHUP; requests in flight are finished. Options as in Server.

    A server that dies or stops answering is restarted, with a line on stderr. Raises InputError if the first
    start fails, or if it cannot be restarted.
    """

    def interrupt(*_) -> None:
        for ending in previous:
            signal.signal(ending, signal.SIG_IGN)  # once is enough: shutdown is in progress
        raise KeyboardInterrupt

    endings = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        endings.append(signal.SIGHUP)
    previous = {ending: signal.signal(ending, interrupt) for ending in endings}
    try:
        with Server(repository, **options) as server:
            addresses = f"{server.http_url} {server.grpc_url} metrics {server.metrics_url}"
            print(f"ready: {addresses} key {server.key_file}", flush=True)
            while True:
                _restart(server, _next_trouble(server))
    except KeyboardInterrupt:
        return 0
    finally:
        for ending, handler in previous.items():
            signal.signal(ending, handler)


def _next_trouble(server: Server) -> str:
    """Monitor until something is wrong; returns the reason."""
    pause = _PERIOD
    while True:
        due = time.monotonic() + pause
        while time.monotonic() < due and server.running:
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
