"""A task whose worker is killed. A module of its own, for the workers import it."""

import os
import signal
from pathlib import Path


def dies(work, marker: Path, times: int, *arguments, **settings):
    """Do the work, and be killed before the answer leaves, `times` times."""
    answer = work(*arguments, **settings)
    for number in range(times):
        try:
            marker.with_name(f"{marker.name}{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
