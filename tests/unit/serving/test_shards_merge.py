"""The gateway's merge of what shards found, and what it says when it cannot."""

import asyncio
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.gateway.catalogue_shards import Shards, merged
from llmcfsr_merlin.serving.gateway.problems import Problem
from llmcfsr_merlin.serving.gateway.tensors import Found, Row
from llmcfsr_merlin.serving.wire import read_shard


def found(*items: str, scores=(), tag=7, reasons=None, exact=True) -> Found:
    return Found(list(items), np.array(scores, np.float32), 1, False, exact, tag, reasons)


def test_the_best_of_all_shards_with_ties_by_shard_and_their_reasons():
    parts = [
        found("a", "b", scores=(3, 1), reasons=["ra", "rb"]),
        found(scores=(), reasons=[]),
        found("c", "d", "e", scores=(4, 3, 1), reasons=["rc", "rd", "re"], exact=False),
    ]
    best = merged(parts, 4)
    assert best.items == ["c", "a", "d", "b"] and best.scores.tolist() == [4, 3, 3, 1]
    assert best.reasons == ["rc", "ra", "rd", "rb"] and (best.unknown, best.tag, best.exact) == (1, 7, False)
    assert merged(parts, 9).items == ["c", "a", "d", "b", "e"]
    assert merged([part._replace(reasons=None) for part in parts], 1).reasons is None


def test_shards_that_do_not_belong_together_are_no_answer():
    with pytest.raises(Problem, match="different versions"):
        merged([found("a", scores=(1,)), found("b", scores=(1,), tag=8)], 5)
    with pytest.raises(Problem, match="the same items"):
        merged([found("a", scores=(1,)), found("a", scores=(1,))], 5)


def test_a_shard_that_does_not_answer_is_named():
    async def ask() -> None:
        shards = Shards(["127.0.0.1:1", "127.0.0.1:2,127.0.0.1:3"], patience=0.2)
        assert len(shards.all) == 3 and shards.ready == [] and not shards.versions
        shards.parts[0].find = answers
        with pytest.raises(Problem, match=r"shard 2 of 2 \(127.0.0.1:2,127.0.0.1:3\): no model server") as raised:
            await shards.find([Row(["x"], 1, False, None, [], False)], time.monotonic() + 5)
        assert raised.value.status == 503

    async def answers(rows, deadline) -> list[Found]:
        return [found("a", scores=(1,))]

    asyncio.run(ask())


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "1/0"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(InputError, match="--shard: expected I/N"):
        read_shard(text)
    assert read_shard("2/3") == (2, 3)
