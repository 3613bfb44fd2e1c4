"""Answers that are given again: by history, k, filters and model version."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

import orjson

from llmcfsr_merlin.serving.gateway.tensors import Row


class AnswerCache:
    """size: answers kept, the least used goes first; 0: none. seconds: how long."""

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.size, self.seconds = size, seconds
        self.hits = self.misses = 0
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, str, dict]] = OrderedDict()

    def get(self, row: Row, versions: Collection[str]) -> dict | None:
        """The answer to the same question by one of `versions`, those that would answer now."""
        if not self.size:
            return None
        key = _key(row)
        found = self._kept.get(key)
        if found is None or found[0] < self._clock() or found[1] not in versions:
            self.misses += 1
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return found[2]

    def put(self, row: Row, answer: dict) -> None:
        if not self.size:
            return
        key = _key(row)
        self._kept[key] = (self._clock() + self.seconds, answer["model_version"], answer)
        self._kept.move_to_end(key)
        if len(self._kept) > self.size:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


def _key(row: Row) -> bytes:
    return hashlib.blake2b(orjson.dumps(tuple(row)), digest_size=16).digest()
