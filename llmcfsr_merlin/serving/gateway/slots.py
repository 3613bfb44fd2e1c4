"""How many requests are at Triton at once, and how many may wait for that: never a pile-up."""

import asyncio
from collections import deque

from llmcfsr_merlin.serving.gateway.problems import busy


class Slots:
    """`limit` holders at once; `queue` more wait in order, the next is refused."""

    def __init__(self, limit: int, queue: int):
        self.limit, self.queue = limit, queue
        self.held = 0
        self._waiting: deque[asyncio.Future] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def resize(self, limit: int) -> None:
        self.limit = limit
        self._wake()

    async def take(self, timeout: float) -> None:
        """Hold a slot, to be given back; Problem where the queue is full, or after `timeout` seconds in it."""
        if self.held < self.limit and not self._waiting:
            self.held += 1
            return
        if len(self._waiting) >= self.queue:
            raise busy("overloaded", f"{self.held} requests are being answered and {len(self._waiting)} wait")
        loop = asyncio.get_running_loop()
        turn: asyncio.Future = loop.create_future()
        late = loop.call_later(timeout, _give_up, turn)
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # its turn came as it gave up
                self.give()
            raise
        finally:
            late.cancel()
            if turn in self._waiting:
                self._waiting.remove(turn)

    def give(self) -> None:
        self.held -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.held < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.held += 1
                turn.set_result(None)


def _give_up(turn: asyncio.Future) -> None:
    if not turn.done():
        turn.set_exception(too_late())


def too_late() -> Exception:
    return busy("timeout", "no answer within gateway.timeout")
