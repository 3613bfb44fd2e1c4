"""What the machine does to long work (disk, memory, workers), told in one line."""

import errno
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from llmcfsr_merlin.errors import InputError


@contextmanager
def clear_failures(stage: str) -> Iterator[None]:
    """Turn a full disk, too little memory and a lost dask cluster into one line that says what to do."""
    again = "then run the same command again, it continues"
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"{stage}: the disk is full ({error.filename or error.strerror}): free space or move the run directory, "
            f"{again}"
        ) from error
    except MemoryError as error:  # of numpy, Arrow, cupy or rmm
        raise InputError(f"{stage}: out of memory: set cluster.partition_size lower, {again}") from error
    except CancelledError as error:
        raise InputError(f"{stage}: the dask scheduler went away: start it again or another one, {again}") from error
    except Exception as error:
        if type(error).__name__ == "KilledWorker":  # by name: without a dask cluster nothing of dask is imported
            raise InputError(
                f"{stage}: a dask worker died again and again, most often from too little memory: set "
                f"cluster.partition_size lower or cluster.memory_limit higher, {again}"
            ) from error
        raise
