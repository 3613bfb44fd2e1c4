"""How fast one caller may ask: a token bucket for each, the least used of many forgotten."""

import time
from collections import OrderedDict
from collections.abc import Callable

from llmcfsr_merlin.serving.gateway.problems import busy

_CALLERS = 10_000  # buckets kept: forgetting one can only be to the caller's advantage


class Rates:
    """rate: tokens a second, twice as many at once; 0: no limit."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst = rate, max(2 * rate, 1.0)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, tokens: int = 1) -> None:
        """Take tokens of a caller; Problem with Retry-After if it has too few. What is more than ever fits into a
        bucket is let through from a full one, and paid afterwards."""
        if not self.rate:
            return
        now = self._clock()
        left, then = self._buckets.pop(caller, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate)
        enough = left >= min(tokens, self.burst)
        self._buckets[caller] = (left - tokens if enough else left, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if not enough:
            wait = (min(tokens, self.burst) - left) / self.rate
            raise busy("rate-limited", f"expected at most {self.rate:g} users a second", int(wait) + 1)
