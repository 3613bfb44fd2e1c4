"""Load on a server in the tests: work in the background, what it waits for, and the figures of what it met."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def meanwhile(work: Callable, *arguments: tuple) -> Iterator[threading.Event]:
    """Call work(stop, *one) in a thread for each of `arguments` while the block runs, until `stop` is set.

    An error in a thread is raised at the end of the block: a client that died is no silent client.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(len(arguments)) as pool:
        running = [pool.submit(work, stop, *one) for one in arguments]
        try:
            yield stop
        finally:
            stop.set()
    for one in running:
        one.result()


def until(condition: Callable[[], bool], seconds: float = 60) -> float:
    """Wait for it; returns the seconds that it took, AssertionError after `seconds`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not true after {seconds} s"
        time.sleep(0.05)
    return round(time.monotonic() - start, 2)


def note(test: str, **figures: object) -> None:
    """Show the figures of a test, and add them as a JSON line to the file LLMCFSR_SECURITY_OUT."""
    print(test, figures)
    if out := os.environ.get("LLMCFSR_SECURITY_OUT"):
        with open(out, "a") as file:
            file.write(json.dumps({"test": test, **figures}) + "\n")
