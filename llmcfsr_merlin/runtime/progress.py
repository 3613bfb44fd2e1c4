"""Progress of long work: a bar on a terminal; in a log a line after ten seconds, then after twice as long each time.

>>> with Progress(len(items), "encode", "items") as progress:     # doctest: +SKIP
...     for item in items:
...         progress.update()
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

_log = logging.getLogger(__name__)
_FIRST, _LONGEST = 10.0, 300.0  # seconds until a line


class Progress:
    """total: None if it is unknown. shown: False for all but one of several processes that do the same."""

    def __init__(
        self,
        total: int | None,
        name: str,
        unit: str,
        *,
        shown: bool = True,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.n, self.total, self.name, self.unit, self._clock = start, total, name, unit, clock
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=start, desc=name, unit=f" {unit}", disable=not (terminal and shown), leave=False,
            unit_scale=unit == "B", smoothing=0.1,
        )  # fmt: skip
        self._logged = shown and not terminal
        self._begun, self._from, self._wait, self._said = clock(), start, _FIRST, ""
        self._next = self._begun + _FIRST

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self.n += count
        self._bar.update(count)
        if self._logged and (now := self._clock()) >= self._next:
            self._wait = min(2 * self._wait, _LONGEST)
            self._next = now + self._wait
            _log.info("  %s", self._line(now))

    def say(self, text: str) -> None:
        """A few words that stand behind the numbers from now on."""
        self._said = text
        self._bar.set_postfix_str(text, refresh=False)

    def _line(self, now: float) -> str:
        rate = (self.n - self._from) / max(now - self._begun, 1e-9)
        line = f"{self.name}: {self._amount(self.n)}"
        if self.total:
            line += f" of {self._amount(self.total)} {self.unit} ({self.n / self.total:.0%})"
        else:
            line += f" {self.unit}"
        line += f", {self._amount(round(rate))}/s" if rate >= 10 else f", {rate:.2g}/s"
        if self.total and rate > 0 and self.n < self.total:
            line += f", about {said_seconds((self.total - self.n) / rate)} left"
        return f"{line}{', ' if self._said else ''}{self._said}"

    def _amount(self, count: int) -> str:
        return f"{count / 1e6:,.1f} M" if self.unit == "B" else f"{count:,}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()


@contextmanager
def announced(name: str, first: float = _FIRST) -> Iterator[None]:
    """Work that cannot count its parts: a line that it still runs, after ten seconds and then as `Progress` says."""
    done, start = threading.Event(), time.monotonic()

    def watch() -> None:
        wait = first
        while not done.wait(wait):
            _log.info("  %s: running for %s", name, said_seconds(time.monotonic() - start))
            wait = min(2 * wait, _LONGEST)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def said_seconds(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
