"""One writer a run: refused with the owner's name, free again however the owner ended."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.lock import LOCK, run_lock

HOLD = """import sys, time
from llmcfsr_merlin.runtime.lock import run_lock
with run_lock(sys.argv[1]):
    print('held', flush=True)
    {}
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the run; ends it at the end."""
    started = []

    def start(body: str = "time.sleep(60)") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(body), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_another_process_is_refused_by_name(holder, tmp_path):
    process = holder()
    told = rf"is being written by .*process {process.pid} on .*same command again"
    with pytest.raises(InputError, match=told), run_lock(tmp_path):
        pass
    process.terminate()
    process.wait()
    with run_lock(tmp_path):
        pass


def test_a_killed_owner_leaves_the_run_free(holder, tmp_path):
    process = holder()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid  # its name is still there
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_killed_owner_whose_forked_worker_lives_leaves_the_run_free(holder, tmp_path):
    process = holder("import os; os.fork() and print('forked', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "forked\n"
    children = psutil.Process(process.pid).children()
    assert children
    process.kill()
    process.wait()
    try:
        with run_lock(tmp_path):
            pass
    finally:
        for child in children:
            child.kill()


def test_the_same_thread_enters_again_and_another_does_not(tmp_path):
    refused = []

    def enter():
        try:
            with run_lock(tmp_path):
                pass
        except InputError as error:
            refused.append(str(error))

    with run_lock(tmp_path), run_lock(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    enter()
    assert len(refused) == 1


def owner(**changed) -> dict:
    me = psutil.Process()
    return {
        "command": "llmcfsr run x",
        "pid": me.pid,
        "host": os.uname().nodename,
        "started": me.create_time(),
    } | changed


@pytest.mark.parametrize(
    ("written", "free"),
    [
        (owner(), False),
        (owner(started=time.time() - 9e6), True),  # the number was given to another process since
        (owner(pid=2**22 + 1), True),  # there is no such process
        (owner(host="elsewhere", pid=1), False),  # cannot be seen from here
        ({}, True),
        ("half a li", True),
    ],
    ids=["alive", "number reused", "gone", "other host", "nobody", "cut"],
)
def test_without_locks_of_the_file_system_the_name_decides(written, free, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    (tmp_path / LOCK).write_text(written if isinstance(written, str) else json.dumps(written))
    if free:
        with run_lock(tmp_path):
            pass
        return
    with pytest.raises(InputError, match="is being written by"), run_lock(tmp_path):
        pass


def test_a_run_that_was_not_written_to_leaves_nothing(tmp_path):
    with run_lock(tmp_path / "new" / "run"):
        pass
    assert not (tmp_path / "new" / "run").exists()


def test_many_take_turns(tmp_path):
    """Each adds to a number that two at a time would spoil; the file of the lock comes and goes."""
    code = (
        "import sys, time; from pathlib import Path; from llmcfsr_merlin.runtime.lock import run_lock\n"
        "from llmcfsr_merlin.runtime.errors import InputError\n"
        "run, done = Path(sys.argv[1]), 0\n"
        "while done < 20:\n"
        "    try:\n"
        "        with run_lock(run):\n"
        "            count = int((run / 'count').read_text()); time.sleep(0.001)\n"
        "            (run / 'count').write_text(str(count + 1)); done += 1\n"
        "    except InputError:\n"
        "        time.sleep(0.001)\n"
    )
    (tmp_path / "count").write_text("0")
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


def test_a_file_in_the_place_of_the_run(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="found a file"), run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "mine"
