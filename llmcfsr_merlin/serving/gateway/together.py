"""Questions that arrive while others are at Triton go there together.

A request costs Triton and its three steps 1.5 ms of a core besides the ranking, however many rows it has. On an idle
server each question goes at once and alone; nothing is waited for but a call that ends, and that not for long.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from llmcfsr_merlin.serving.gateway.problems import Problem
from llmcfsr_merlin.serving.gateway.slots import too_late
from llmcfsr_merlin.serving.gateway.tensors import Found, Row, kind

_LONGEST = 0.1  # seconds that a question waits for others: a replica that hangs must not hold up the rest

Find = Callable[[Sequence[Row], float], Awaitable[list[Found]]]


class Question:
    """One user's row, until when (time.monotonic()) its answer is of use, and the call that it went with."""

    def __init__(self, row: Row, deadline: float):
        self.row, self.deadline = row, deadline
        self.answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self.call: asyncio.Task | None = None
        self.others: list[Question] = []


class Together:
    """find: asks rows of one kind. calls: as many go alone, before questions wait; 0: all go alone. most: rows of a
    call."""

    def __init__(self, find: Find, calls: Callable[[], int], most: Callable[[], int]):
        self._find, self._calls, self._most = find, calls, most
        self._waiting: list[Question] = []
        self._under_way: set[asyncio.Task] = set()
        self._late: asyncio.TimerHandle | None = None

    async def find(self, row: Row, deadline: float) -> Found:
        """The answer to one row, by `deadline` (time.monotonic()); errors as of the `find` that was given."""
        if not self._calls():
            return (await self._find([row], deadline))[0]
        loop = asyncio.get_running_loop()
        question = Question(row, deadline)
        self._waiting.append(question)
        if len(self._under_way) < self._calls():
            self._send()
        elif self._late is None:
            self._late = loop.call_later(_LONGEST, self._send_late)
        late = loop.call_later(deadline - time.monotonic(), _give_up, question.answer)
        try:
            return await question.answer
        finally:
            late.cancel()
            self._left(question)

    def _left(self, question: Question) -> None:
        """Nobody waits for it any more: its call is given up if that holds for all who went with it."""
        if question.call is None:
            self._waiting.remove(question)
        elif not question.call.done() and all(one.answer.done() for one in question.others):
            question.call.cancel()

    def _send_late(self) -> None:
        self._late = None
        if self._waiting:
            self._send()
            if self._waiting:
                self._late = asyncio.get_running_loop().call_later(_LONGEST, self._send_late)

    def _send(self) -> None:
        """Send the first question, and those of its kind with it."""
        first = kind(self._waiting[0].row)
        taken = [one for one in self._waiting if kind(one.row) == first][: self._most()]
        self._waiting = [one for one in self._waiting if one not in taken]
        call = asyncio.ensure_future(self._ask(taken))
        for one in taken:
            one.call, one.others = call, taken
        self._under_way.add(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task) -> None:
        self._under_way.discard(call)
        while self._waiting and len(self._under_way) < self._calls():
            self._send()

    async def _ask(self, questions: list[Question]) -> None:
        try:
            found = await self._find([one.row for one in questions], max(one.deadline for one in questions))
        except Problem as problem:
            if len(questions) > 1 and problem.kind == "invalid-field":  # one's error is its own
                await asyncio.gather(*(self._ask([one]) for one in questions))
                return
            _fail(questions, problem)
        except Exception as error:
            _fail(questions, error)
        else:
            for one, answer in zip(questions, found):
                if not one.answer.done():
                    one.answer.set_result(answer)


def _fail(questions: list[Question], error: Exception) -> None:
    for one in questions:
        if not one.answer.done():
            one.answer.set_exception(error)


def _give_up(answer: asyncio.Future) -> None:
    if not answer.done():
        answer.set_exception(too_late())
