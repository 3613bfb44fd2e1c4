"""Runs the parsing of blocks on all cores and hands the results back in order."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from llmcfsr_merlin.runtime.errors import InputError


def in_order(pool: Executor | None, tasks: Iterable[Callable], workers: int) -> Iterator:
    """Results of the tasks in order; at most workers + 2 of them are in flight, so that memory is bounded."""
    if pool is None:
        yield from (task() for task in tasks)
        return
    flying: deque = deque()
    try:
        for task in tasks:
            flying.append(pool.submit(task))
            if len(flying) > workers + 1:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "a parser process died: set cluster.workers=1, or give it more memory; a script that calls ingest needs "
            '`if __name__ == "__main__":`'
        ) from error
    finally:
        for future in flying:
            future.cancel()


class Processes:
    """Processes for parsing in Python, or None in-process if there is one worker."""

    def __init__(self, workers: int):
        # spawn: forking a process with threads (Arrow's, a progress bar's) can leave locks held forever.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else None

    def __enter__(self) -> ProcessPoolExecutor | None:
        return self._pool

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
