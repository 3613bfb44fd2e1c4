"""uvicorn's HTTP protocol with what it lacks: limits on the head, on slow clients and on the number of connections."""

import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmcfsr_merlin.serving.gateway.problems import MEDIA_TYPE, Problem

SCOPE = "llmcfsr.connection"  # in a request's scope: its Connection
_HEAD = 16 * 1024  # bytes of request line and headers
_PIPELINED = 16  # requests that a client may send before the first is answered
_ON_TIME = 1.5  # seconds between two sweeps that are on time
_SPARE = 0.05  # of the connections, closed at once where there are too many


class Connection(HttpToolsProtocol):
    """A client's connection. waiting_since: time.monotonic() from when on the client owes us a whole request, or us to
    read its answer; None while the gateway works for it, or it is idle (uvicorn closes those)."""

    most = 4096  # connections; set by `limited`
    on_closed: Any = staticmethod(lambda: None)  # called when one is closed for being slow

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.waiting_since: float | None = time.monotonic()
        self.task: Any = None  # works on a request of this connection
        self._head = 0
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        if self.waiting_since is None and (self.cycle is None or self.cycle.response_complete):
            self.waiting_since, self._head = time.monotonic(), 0
        self._head += len(data)
        super().data_received(data)
        if self._head > _HEAD and not self.transport.is_closing():
            self.refuse(Problem("head-too-large", f"expected a head of at most {_HEAD} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.waiting_since = time.monotonic()
        self.scope[SCOPE] = self  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        self._head = -(1 << 60)  # what follows is the body, which is counted as it is read
        super().on_headers_complete()
        if len(self.pipeline) > _PIPELINED:
            self.transport.close()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.waiting_since, self._head = None, 0

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem("invalid-json", "expected an HTTP/1.1 request"))

    def refuse(self, problem: Problem) -> None:
        """Say what is wrong, unless an answer is under way, and close."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = problem.body()
            head = f"HTTP/1.1 {problem.status} \r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def close_slow(self) -> None:
        self.on_closed()
        if self.flow.write_paused:  # it does not read: there is no use in writing more
            self.transport.abort()
        else:
            self.refuse(Problem("request-timeout", "expected a whole request within gateway.request_timeout"))

    def _make_room(self) -> None:
        others: list[Any] = [other for other in self.connections if other is not self]
        idle = [other for other in others if _is_idle(other)]
        idle.sort(key=lambda other: other.waiting_since or 0.0)
        for other in idle[: max(1, int(_SPARE * self.most))]:
            self.on_closed()
            other.transport.abort()
        if not idle:
            self.transport.abort()


def _is_idle(connection: Any) -> bool:
    working = connection.cycle is not None and not connection.cycle.response_complete
    return not working or connection.waiting_since is not None


class Sweep:
    """Closes the connections whose client has been slow for longer than `seconds`; called once a second.

    Time in which the gateway itself could not run is no client's: what was sent meanwhile is not read yet.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._last: float | None = None

    def __call__(self, connections: Any) -> None:
        now = time.monotonic()
        late = 0.0 if self._last is None else max(now - self._last - _ON_TIME, 0.0)
        self._last = now
        for connection in list(connections):
            since = connection.waiting_since
            if connection.flow is not None and connection.flow.write_paused and since is None:
                connection.waiting_since = now  # from here on it owes us to read
            elif since is not None and late:
                connection.waiting_since = min(since + late, now)
            elif since is not None and now - since > self.seconds:
                connection.close_slow()


def limited(most: int, on_closed: Any) -> type[Connection]:
    """The protocol class for `most` connections."""
    return type("Connection", (Connection,), {"most": most, "on_closed": staticmethod(on_closed)})
