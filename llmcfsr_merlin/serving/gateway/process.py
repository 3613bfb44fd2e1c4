"""The gateway's process: an event loop of uvicorn on a socket that is open already.

`llmcfsr gateway` and `llmcfsr serve` start it as `python -m llmcfsr_merlin.serving.gateway.process OPTIONS`.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.gateway.app import make_app
from llmcfsr_merlin.serving.gateway.connections import Sweep, limited
from llmcfsr_merlin.serving.gateway.keys import Keys
from llmcfsr_merlin.serving.gateway.options import Options
from llmcfsr_merlin.serving.gateway.telemetry import Telemetry

_OWN_FILES = 256  # descriptors that are not a client's
_BACKLOG = 2048


def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are finished."""
    settings = GatewayConfig.model_validate(options.settings)
    most = min(settings.max_connections, _descriptors() - _OWN_FILES)
    telemetry, sweep = Telemetry(), Sweep(settings.request_timeout)
    app = make_app(
        Path(options.repository), options.replicas, settings, sharded=options.sharded,
        keys=Keys(options.keys) if options.keys else None, cors=options.cors, log_requests=options.log_requests,
        telemetry=telemetry, beside=lambda: sweep(server.server_state.connections),
    )  # fmt: skip
    config = uvicorn.Config(
        app, http=limited(most, telemetry.closed.inc), ws="none", loop="uvloop", lifespan="on", access_log=False,
        log_config=None, server_header=False, headers=[("x-content-type-options", "nosniff")], proxy_headers=False,
        timeout_keep_alive=int(settings.keep_alive) or 1, timeout_graceful_shutdown=int(settings.timeout) + 5,
        backlog=_BACKLOG,
    )  # fmt: skip
    server = _Server(config)
    server.run(sockets=[socket.socket(fileno=options.socket)])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises them again in the end: this process ends with code 0."""
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, self.handle_exit)
        yield


def _descriptors() -> int:
    """As many as this process may have: the default, 1,024, is less than a gateway needs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a line for each malformed request, else
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        run(Options(**json.loads(sys.argv[1])))
    except InputError as error:
        logging.getLogger(__name__).error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
