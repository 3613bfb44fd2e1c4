"""Several tritonservers as one: asked in turn, put aside while they fail, asked again when they answer."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from llmcfsr_merlin.serving.gateway.problems import Problem, busy
from llmcfsr_merlin.serving.gateway.replica import Gone, Replica
from llmcfsr_merlin.serving.gateway.slots import too_late
from llmcfsr_merlin.serving.gateway.tensors import Found, Row, message, read
from llmcfsr_merlin.serving.repository import EXPLAIN

_log = logging.getLogger(__name__)
_PERIOD, _PERIOD_ASIDE = 1.0, 0.3  # seconds between two questions of the watch, to one that answers and one put aside
RETRY_SECONDS = 2

_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.FAILED_PRECONDITION)


class Replicas:
    """Asks its replicas in turn.

    A replica is put aside when its connection breaks, when it says that it stops, or when it answers nothing for
    `patience` seconds; what it was asked is asked of another. It is back as soon as it answers the watch's question.
    changed: called when a replica comes or goes. explains: as in repository.Served.
    """

    explains: str | None = EXPLAIN

    def __init__(self, addresses: Sequence[str], patience: float, changed: Callable[[], None] = lambda: None):
        self.all = [Replica(address) for address in addresses]
        self.patience, self.changed = patience, changed
        self._turn = 0
        self._watches: list[asyncio.Task] = []

    @property
    def ready(self) -> list[Replica]:
        return [replica for replica in self.all if replica.ready]

    @property
    def versions(self) -> set[str]:
        """The model versions that a question may be answered by."""
        return {replica.version for replica in self.ready}

    async def start(self) -> None:
        """Connect, ask each once, and watch them from now on."""
        for replica in self.all:
            replica.connect()
        await asyncio.gather(*(self._look(replica) for replica in self.all))
        self._watches = [asyncio.create_task(self._watch(replica)) for replica in self.all]

    async def stop(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.all))

    async def find(self, rows: Sequence[Row], deadline: float) -> list[Found]:
        """The answers to rows that may stand in one message (tensors.message), as `ask`."""
        return read(await self.ask(message(rows, self.explains), deadline), rows)

    async def ask(self, request: Any, deadline: float) -> Any:
        """The answer of one replica, by `deadline` (time.monotonic()); Problem if there is none to be had."""
        tried: set[Replica] = set()
        while (replica := self._next(tried)) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise too_late()
            tried.add(replica)
            try:
                return await replica.ask(request, left)
            except Gone as gone:
                self._aside(replica, str(gone))
            except grpc.aio.AioRpcError as error:
                code, said = error.code(), " ".join(str(error.details()).split())[:300]
                if code == grpc.StatusCode.UNAVAILABLE:
                    self._aside(replica, said)
                elif code in _REFUSED:
                    raise Problem("invalid-field", said) from error
                elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise too_late() from error
                else:  # a step has died, or fails on this one request: the watch tells
                    _log.warning("%s: %s %s", replica.address, code.name, said)
                    replica.look_now.set()
        raise busy("no-server", "no model server answers at the moment", RETRY_SECONDS)

    async def answers(self) -> bool:
        """Whether a replica answers a real question now."""
        for replica in self.ready:
            if await self._look(replica):
                return True
        return False

    def _next(self, tried: set[Replica]) -> Replica | None:
        """The next in turn that is ready and not tried yet."""
        for step in range(1, len(self.all) + 1):
            replica = self.all[(self._turn + step) % len(self.all)]
            if replica.ready and replica not in tried:
                self._turn = (self._turn + step) % len(self.all)
                return replica
        return None

    def _aside(self, replica: Replica, reason: str) -> None:
        if replica.ready:
            _log.warning("%s put aside: %s", replica.address, reason)
            replica.ejections += 1
            replica.drop()
            self.changed()

    async def _watch(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.call_later(_PERIOD if replica.ready else _PERIOD_ASIDE, replica.look_now.set)
            await replica.look_now.wait()
            due.cancel()
            await asyncio.sleep(0.05)  # many failing requests at once are one reason to look
            replica.look_now.clear()
            try:
                await self._look(replica)
            except Exception:
                _log.exception("watching %s", replica.address)

    async def _look(self, replica: Replica) -> bool:
        """Ask a real question; whether it was answered."""
        was, since = replica.ready, time.monotonic()
        try:
            await replica.look(self.patience)
        except (grpc.aio.AioRpcError, Gone) as error:
            late = isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            if late and replica.ready and replica.last_answer > since:
                return True  # busy, not hung: it has answered others meanwhile
            self._aside(replica, _short(error))
            return False
        if not was:
            _log.info("%s answers, version %s", replica.address, replica.version)
            self.changed()
        return True


def _short(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {' '.join(str(error.details()).split())[:200]}"
    return str(error)
