"""Child processes: how they end, and that none is left."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable


def ending(code: int) -> str:
    """What an exit code says, after "ended"."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process that leads a group of its own, and the rest of the group; returns when they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _await_group(process.pid)


def _await_group(group: int, seconds: float = 3.0) -> None:
    """Wait until no process of a killed group is left (unreaped zombies are ignored)."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.02)


def end_with_parent() -> Callable[[], None] | None:
    """For Popen's preexec_fn; None in other threads than the main one, whose end would be taken for the parent's."""
    return _end_with_parent if threading.current_thread() is threading.main_thread() else None


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the parent dies, even by SIGKILL (Linux: when the starting thread ends)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
