"""`llmcfsr serve`: a server in the foreground, watched by real requests and started again when it stops answering."""

import signal
import sys
import time
from datetime import datetime
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.server import Server

_PERIOD = 1.0  # seconds between two requests of the watch, at least
_SHARE = 20  # and at least this many times what the last one took: a twentieth of a core for a large catalogue
_PATIENCE = 30.0  # a server that gives no answer for so long is taken for hung
_PAUSES = (0, 1, 2, 4, 8)  # seconds before each try to start again


def serve(repository: str | Path, **options) -> int:
    """Serve in the foreground until SIGINT, SIGTERM or SIGHUP; requests in flight are finished. Options as in Server.

    A server that dies or stops answering is started again, with a line on stderr. Raises InputError if the first
    start fails, or if it cannot be started again.
    """

    def interrupt(*_) -> None:
        for ending in previous:
            signal.signal(ending, signal.SIG_IGN)  # once is enough: the end is under way
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
    """Watch until something is wrong; what it is."""
    pause = _PERIOD
    while True:
        due = time.monotonic() + pause
        while time.monotonic() < due and server.running:
            time.sleep(0.1)
        start = time.monotonic()
        reason = server.trouble(_PATIENCE)
        took = time.monotonic() - start
        if reason and server.running and took < _PATIENCE and "not healthy" not in reason:
            time.sleep(0.3)  # once may be a moment's: a model that is being reloaded
            reason = server.trouble(_PATIENCE)
        if reason:
            return reason
        pause = max(_PERIOD, _SHARE * took)


def _restart(server: Server, reason: str) -> None:
    _say(f"tritonserver {reason}: starting it again")
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
    raise InputError(f"tritonserver did not start again in {len(_PAUSES)} tries, giving up. The last one: {last}")


def _say(text: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", file=sys.stderr, flush=True)
