"""Questions of single users that go to Triton together: each gets its own answer, error and patience."""

import asyncio
import time

import pytest

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
import numpy as np

from llmcfsr_merlin.serving.gateway import together
from llmcfsr_merlin.serving.gateway.problems import Problem
from llmcfsr_merlin.serving.gateway.tensors import Found, Row
from llmcfsr_merlin.serving.gateway.together import Together


def row(name: str, **other) -> Row:
    return Row([name], 3, None, None, [], False)._replace(**other)


class Triton:
    """Answers each row with its history after `seconds`; a history of "bad" fails all that went with it."""

    def __init__(self, seconds: float = 0.02):
        self.seconds, self.asked, self.cancelled, self.now, self.largest = seconds, [], 0, 0, 0

    async def find(self, rows, deadline) -> list[Found]:
        self.asked.append([one.history[0] for one in rows])
        self.now += 1
        self.largest = max(self.largest, self.now)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        if ["bad"] in [one.history for one in rows]:
            raise Problem("invalid-field", "TOP_K: expected less")
        return [Found(one.history, np.zeros(1, np.float32), 0, False, True, 1, None) for one in rows]


async def answers(joined: Together, rows: list[Row], seconds: float = 5.0) -> list:
    asked = (joined.find(one, time.monotonic() + seconds) for one in rows)
    return await asyncio.gather(*asked, return_exceptions=True)


def run(work) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_who_comes_while_others_are_asked_goes_together_and_gets_its_own_answer():
    async def work():
        triton = Triton()
        joined = Together(triton.find, lambda: 2, lambda: 8)
        names = [f"B{place}" for place in range(26)]
        found = await answers(joined, [row(name) for name in names])
        assert [one.items for one in found] == [[name] for name in names]
        assert [len(one) for one in triton.asked] == [1, 1, 8, 8, 8] and triton.largest == 2
        await answers(joined, [row("alone")])
        assert triton.asked[-1] == ["alone"]

    run(work())


def test_only_questions_of_one_kind_go_together():
    async def work():
        triton = Triton()
        joined = Together(triton.find, lambda: 1, lambda: 8)
        told = [row(name, explain=True) for name in "be"]
        await answers(joined, [row("first"), row("a"), told[0], row("c"), row("d", exclude_seen=True), told[1]])
        assert triton.asked == [["first"], ["a", "c"], ["b", "e"], ["d"]]

    run(work())


def test_one_error_is_its_own():
    async def work():
        triton = Triton()
        joined = Together(triton.find, lambda: 1, lambda: 8)
        found = await answers(joined, [row(name) for name in ("first", "a", "bad", "b")])
        assert isinstance(found[2], Problem) and [found[place].items for place in (0, 1, 3)] == [
            ["first"],
            ["a"],
            ["b"],
        ]
        assert (await answers(joined, [row("next")]))[0].items == ["next"]

    run(work())


def test_who_leaves_takes_nobody_along_and_a_call_that_nobody_waits_for_is_given_up():
    async def work():
        triton = Triton(0.2)
        joined = Together(triton.find, lambda: 1, lambda: 8)
        asked = [asyncio.ensure_future(joined.find(row(name), time.monotonic() + 5)) for name in "abcd"]
        await asyncio.sleep(0.01)
        asked[3].cancel()  # it waits
        await asyncio.sleep(0.22)
        asked[1].cancel()  # it is asked, with c
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [found[place].items for place in (0, 2)] == [["a"], ["c"]] and triton.asked == [["a"], ["b", "c"]]
        assert isinstance(found[1], asyncio.CancelledError) and isinstance(found[3], asyncio.CancelledError)
        late = await answers(joined, [row("x"), row("y")], seconds=0.05)
        assert [problem.kind for problem in late] == ["timeout"] * 2
        await asyncio.sleep(0.01)
        assert triton.cancelled == 1 and not joined._waiting and not joined._under_way

    run(work())


def test_a_call_that_hangs_holds_up_nobody_for_long(monkeypatch):
    monkeypatch.setattr(together, "_LONGEST", 0.02)

    async def work():
        triton = Triton(30)
        joined = Together(triton.find, lambda: 1, lambda: 8)
        hanging = asyncio.ensure_future(joined.find(row("hangs"), time.monotonic() + 60))
        await asyncio.sleep(0.01)
        triton.seconds = 0.01
        assert [one.items for one in await answers(joined, [row("a"), row("b")])] == [["a"], ["b"]]
        assert triton.asked == [["hangs"], ["a", "b"]]
        hanging.cancel()

    run(work())


def test_none_wait_if_it_is_switched_off():
    async def work():
        triton = Triton()
        await answers(Together(triton.find, lambda: 0, lambda: 8), [row(f"B{place}") for place in range(5)])
        assert triton.largest == 5 and all(len(one) == 1 for one in triton.asked)

    run(work())
