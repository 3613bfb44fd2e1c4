"""One writer per run directory: a kernel file lock that records its owner."""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmcfsr_merlin.runtime.errors import InputError

LOCK = ".llmcfsr.lock"  # in the run directory while it is written, or after its writer was killed
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems


@dataclass
class _Held:
    """A lock held by this process; depth: how often it was entered."""

    descriptor: int
    process: int
    thread: int
    depth: int = 1


_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@contextmanager
def run_lock(run: str | Path) -> Iterator[None]:
    """Hold the run directory (created if it is missing) for writing.

    Raises InputError with the owner's command, process and host if another process, or another thread of this one,
    holds it. The same thread may enter again. The kernel releases the lock of a process that is killed.
    """
    run = Path(run)
    if run.exists() and not run.is_dir():
        raise InputError(f"expected a run directory at {run}, found a file: choose another --run")
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    path = (run / LOCK).resolve()
    with _guard:
        held = _held.get(path)
        if held is None or held.process != os.getpid():
            _held[path] = held = _Held(_acquire(run, path), os.getpid(), threading.get_ident())
        elif held.thread == threading.get_ident():
            held.depth += 1
        else:
            raise InputError(_refusal(run, _me()))
    try:
        yield
    finally:
        with _guard:
            held.depth -= 1
            if not held.depth:
                del _held[path]
                with suppress(OSError):
                    path.unlink()  # before the lock is released, see _acquire
                os.close(held.descriptor)
                if made:
                    with suppress(OSError):
                        run.rmdir()  # nothing was written


def _acquire(run: Path, path: Path) -> int:
    """Open and lock the file and record the owner; returns the open descriptor, or raises InputError."""
    for attempt in range(100):  # some network file systems give a file two inode numbers: stop retrying then
        descriptor = _lock(run, path)
        try:  # no second open: closing any descriptor of a file releases its lock
            if attempt == 99 or os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last owner removed it between our open and our lock
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(run: Path, path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        # Not flock(): forked child processes would keep the lock after this process was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(descriptor)
        if error.errno not in _UNSUPPORTED:
            for _ in range(20):  # the owner has just taken the lock and not recorded itself yet
                if owner or error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
                time.sleep(0.02)
                owner = _owner(descriptor)
            os.close(descriptor)
            raise InputError(_refusal(run, owner)) from None
        if owner and _lives(owner):
            os.close(descriptor)
            hint = f" (if that process is gone, remove {path})" if owner.get("host") != socket.gethostname() else ""
            raise InputError(_refusal(run, owner) + hint) from None
    return descriptor


def _me() -> dict:
    command = " ".join(["llmcfsr", *map(shlex.quote, sys.argv[1:])]) if sys.argv[0].endswith("llmcfsr") else "python"
    return {
        "command": command[:200],
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": psutil.Process().create_time(),
    }


def _owner(descriptor: int) -> dict:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives(owner: dict) -> bool:
    """Whether the owner still runs. Processes of other hosts are invisible; a pid can have been reused."""
    if owner.get("host") != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(owner["pid"]))
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - owner["started"]) < 2
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _refusal(run: Path, owner: dict) -> str:
    if not owner:
        return f"{run} is being written by another process: wait until it is done, then run the same command again"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.get("started", 0)))
    return (
        f"{run} is being written by `{owner.get('command')}` (process {owner.get('pid')} on {owner.get('host')}, "
        f"started {since}): wait until it is done or stop it, then run the same command again"
    )
