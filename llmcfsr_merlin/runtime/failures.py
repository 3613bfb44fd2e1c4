"""Turns disk-full, out-of-memory, descriptor limits and lost workers into one-line user errors."""

import errno
import os
import resource
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency

_AGAIN = "then run the same command again to continue"
_FULL, _LIMIT, _DENIED, _FILES, _MEMORY, _BROKEN, _PROCESSES, _UNWRITTEN = range(8)
_KIND = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _LIMIT,
    errno.EACCES: _DENIED, errno.EPERM: _DENIED, errno.EROFS: _DENIED,
    errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.ENOMEM: _MEMORY,
    errno.EIO: _BROKEN, errno.ESTALE: _BROKEN, errno.EREMOTEIO: _BROKEN,
}  # fmt: skip
# Libraries that hide the errno: safetensors (Rust), torch's and Arrow's writers, sqlite, the dynamic loader.
_TEXTS = (
    (_FULL, ("no space left", "quota exceeded", "storagefull", "disk is full", "errno 28", "os error 28", "code: 28")),
    (_LIMIT, ("file too large", "filetoolarge", "errno 27", "os error 27", "code: 27")),
    (_FILES, ("too many open files", "errno 24", "os error 24", "code: 24")),
    (_DENIED, ("permission denied", "read-only file system", "readonly database")),
    (_BROKEN, ("input/output error", "disk i/o error", "stale file handle")),
    (_PROCESSES, ("can't start new thread", "resource temporarily unavailable")),
    (_MEMORY, ("allocate memory", "out of memory", "not enough memory", "bad_alloc", "failed to allocate",
               "unable to allocate", "alloc_failed", "malloc of size", "failed to map segment", "memory exhausted")),
    (_UNWRITTEN, ("failed writing", "file write failed", "unexpected pos", "requested and", "unable to open file")),
)  # fmt: skip
_LIBRARIES = ("safetensors", "pyarrow", "sqlite3", "_sqlite3", "torch", "optuna", "sqlalchemy", "zipfile")
_SMALLER = {"embed": "embed.batch_size", "train": "train.batch_size", "evaluate": "evaluate.batch_size"}


@contextmanager
def clear_failures(stage: str, smaller: str | None = None) -> Iterator[None]:
    """Turn resource exhaustion into a one-line InputError that says what to do; other errors pass unchanged.

    smaller: the setting to lower if memory runs out; default: the stage's.
    """
    try:
        yield
    except Exception as error:
        line = machine_failure(error, smaller or _SMALLER.get(stage, "cluster.partition_size"))
        if line is None:
            raise
        raise InputError(f"{stage}: {line}, {_AGAIN}") from error


def machine_failure(error: BaseException, smaller: str | None = None) -> str | None:
    """What ran out and what to do about it, without a full stop; None for other errors.

    Chained exceptions are searched too. smaller: a setting to lower for less memory.
    """
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen and len(seen) < 10:
        if isinstance(one, InputError | MissingDependency):
            return None
        if (line := _named(one, smaller)) is not None:
            return line
        seen.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None


def _named(error: BaseException, smaller: str | None) -> str | None:
    name, fewer = type(error).__name__, f"set {smaller} lower" if smaller else "close what else uses memory"
    if name == "KilledWorker":  # by name: without a dask cluster nothing of dask is imported
        return (
            "a dask worker kept dying, most likely out of memory: set cluster.partition_size lower "
            "or cluster.memory_limit higher"
        )
    if isinstance(error, CancelledError):
        return "the dask scheduler disappeared: start it again or use another one"
    if name in ("BrokenProcessPool", "ProcessExitedException"):
        return f"a process of this command was killed, most likely out of memory: {fewer}"
    if name == "OutOfMemoryError":
        return f"out of memory on the GPU: {fewer}"
    if isinstance(error, MemoryError):
        return f"out of memory: {fewer}"
    kind = _KIND.get(error.errno or 0) if isinstance(error, OSError) else None
    if kind is None and isinstance(error, FileNotFoundError):
        return None
    foreign = type(error).__module__.startswith(_LIBRARIES)
    if kind is None and (foreign or isinstance(error, RuntimeError | OSError | ImportError)):
        text = str(error).lower()
        kind = next((kind for kind, parts in _TEXTS if any(part in text for part in parts)), None)
    if kind == _UNWRITTEN:
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        kind = _LIMIT if limited else _FULL
    return None if kind is None else _told(kind, error, fewer)


def _told(kind: int, error: BaseException, fewer: str) -> str:
    path = getattr(error, "filename", None)
    which = f" ({os.fsdecode(path)})" if isinstance(path, str | bytes | os.PathLike) else ""
    if kind == _FULL:
        return f"the disk is full{which}: free space or move the run directory"
    if kind == _LIMIT:
        return f"a file exceeded the file size limit{which}: raise it (ulimit -f unlimited)"
    if kind == _DENIED:
        what = which or f" ({' '.join(str(error).split())[:120]})"
        return f"no permission to read or write{what}: make it accessible to this user, or choose another folder"
    if kind == _FILES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files{which}, the limit is {limit}: raise it (ulimit -n {max(4096, 4 * limit)})"
    if kind == _PROCESSES:
        return "no more threads or processes can be started: raise the limit (ulimit -u) or set cluster.workers lower"
    if kind == _BROKEN:
        return f"the disk failed ({' '.join(str(error).split())[:120]}): check it or move the run directory"
    return f"out of memory: {fewer}"
