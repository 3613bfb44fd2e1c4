"""What every request passes first: its key, its rate, its time; and what it is answered when something goes wrong."""

import asyncio
import logging
import time
from typing import Any

from llmcfsr_merlin.serving.gateway.connections import SCOPE
from llmcfsr_merlin.serving.gateway.keys import Keys, sent_key
from llmcfsr_merlin.serving.gateway.problems import Problem
from llmcfsr_merlin.serving.gateway.rates import Rates
from llmcfsr_merlin.serving.gateway.telemetry import Telemetry

_log = logging.getLogger(__name__)
CALLER = "llmcfsr.caller"  # in a request's scope: whose rate it is
_OPEN = ("/health/live", "/health/ready", "/docs", "/openapi.json")  # need no key and have no rate


class Front:
    """ASGI middleware around the application. keys None: nobody needs one."""

    def __init__(self, app: Any, *, keys: Keys | None, rates: Rates, telemetry: Telemetry, log_requests: bool):
        self.app, self.keys, self.rates, self.telemetry = app, keys, rates, telemetry
        self.log_requests = log_requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def counted(event: Any) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            await send(event)

        connection = scope.get(SCOPE)
        if connection is not None:
            connection.task = asyncio.current_task()  # cancelled where the client goes away
        try:
            self._check(scope)
            await self.app(scope, receive, counted)
        except Problem as problem:
            await problem.response()(scope, receive, counted)
        except asyncio.CancelledError:
            if connection is None or not connection.transport.is_closing():
                raise
            self.telemetry.cancelled.inc()
        except Exception:
            _log.exception("%s %s", scope["method"], _route(scope))
            if not status:
                await Problem("internal", "the gateway's log says why").response()(scope, receive, counted)
        finally:
            if connection is not None:
                connection.task = None
            self._count(scope, status, time.perf_counter() - start)

    def _check(self, scope: Any) -> None:
        client = scope.get("client")
        scope[CALLER] = caller = client[0] if client else ""
        if scope["path"] in _OPEN:
            return
        if self.keys is not None:
            key = sent_key(scope["headers"])
            name = None if key is None else self.keys.name(key)
            if name is None:
                said = "expected an API key in X-API-Key or Authorization: Bearer"
                raise Problem("unauthorized", f"{said}, found {'none' if key is None else 'one that is unknown'}",
                              headers={"www-authenticate": "Bearer"})  # fmt: skip
            scope[CALLER] = caller = name
        self.rates.take(caller)

    def _count(self, scope: Any, status: int, seconds: float) -> None:
        route = _route(scope)
        self.telemetry.requests.labels(route, str(status)).inc()
        self.telemetry.seconds.labels(route).observe(seconds)
        if self.log_requests:
            caller = scope.get(CALLER, "") if self.keys is not None else "-"
            _log.info("%s %s %d %.1f ms %s", scope["method"], route, status, 1000 * seconds, caller)


def _route(scope: Any) -> str:
    """The route's template: a path may hold an item's id."""
    return getattr(scope.get("route"), "path", "none")
