"""`llmcfsr serve` when a request, or a signal, ends one of its processes: over in seconds, and nothing is lost.

LLMCFSR_ATTACKS: seconds of each load (2). LLMCFSR_SECURITY_OUT: a file for one JSON line of figures a test.
"""

import contextlib
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.launch import find_tritonserver
from tests.attacked import GOOD, Served, exported, failures, good_clients, serving
from tests.load import meanwhile, note
from tests.served import IDS

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def served(repository, tmp_path_factory):
    with serving(repository, tmp_path_factory.mktemp("log") / "stderr") as running:
        yield running


def one_byte_chunks(served: Served) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(b"POST /v2/models/recommend/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"1\r\na\r\n" * 10_000)
        connection.sendall(b"0\r\n\r\n")
        connection.recv(100)


def huge(served: Served, name: str, datatype: str, value) -> None:
    served.infer(*GOOD["inputs"], {"name": name, "datatype": datatype, "shape": [2**63 - 1, 1], "data": [value]})


NESTED = b'{"inputs": [{"name": "HISTORY", "datatype": "BYTES", "shape": [1, 1], "data": %s%s}]}' % (
    b"[" * 100_000,
    b"]" * 100_000,
)
KILLERS = {
    "TOP_K of 2^63 rows": lambda s: huge(s, "TOP_K", "INT32", 1),
    "a step killed": lambda s: s.stubs()[0].kill(),
    "EXCLUDE_SEEN of 2^63 rows": lambda s: huge(s, "EXCLUDE_SEEN", "BOOL", True),
    "classification": lambda s: s.infer(
        *GOOD["inputs"], outputs=[{"name": "ITEMS", "parameters": {"classification": 1}}]
    ),
    "nested data": lambda s: s.post("/v2/models/recommend/infer", NESTED),
    "one-byte chunks": one_byte_chunks,
    "the server killed": lambda s: s.triton().kill(),
    "every step killed": lambda s: [stub.kill() for stub in s.stubs()],
    "a step stopped for good": lambda s: s.stubs()[0].send_signal(signal.SIGSEGV),
}
FAST = ("TOP_K of 2^63 rows", "a step killed")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in KILLERS])
def test_what_kills_the_server_is_over_in_seconds(served, name):
    served.answers_again()
    told, start = served.log.read_text().count("restarting it"), time.monotonic()
    with good_clients(served, 2) as found:
        time.sleep(0.5)
        before = failures(found)
        KILLERS[name](served)
        while served.log.read_text().count("answers again") <= told:
            assert time.monotonic() - start < 90, served.log.read_text()
            time.sleep(0.1)
        seconds = round(time.monotonic() - start, 1)
        served.answers_again(5)
        time.sleep(1)  # clients find it again
        broken = failures(found)
        time.sleep(0.5)
    note(
        "killer",
        name=name,
        down_seconds=seconds,
        failed_while_down=broken - before,
        failed_after=failures(found) - broken,
    )
    assert before == 0 and failures(found) == broken, found
    assert "restarting it" in served.log.read_text()
    assert len(served.stubs()) == 3


def shared_regions(name: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{name}_*"))


@pytest.mark.parametrize(
    "ending", [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_finishes_what_is_in_flight_and_takes_no_more(repository, tmp_path, ending):
    """Connections stay open, as clients keep them: Triton itself goes on answering those for its whole exit time."""
    served = Served(repository, tmp_path / "stderr")
    folder, family = served.key_file.parent, [served.triton(), *served.stubs()]
    asked, lock = [], threading.Lock()

    def ask(stop: threading.Event, protocol: str) -> None:
        with Client(getattr(served, protocol)) as client:
            while not stop.is_set():
                start, outcome = time.monotonic(), "ok"
                try:
                    client.answer([IDS[:9]] * 8, 20)
                except InputError as error:
                    outcome = str(error)
                with lock:
                    asked.append((start, time.monotonic(), outcome))
                if outcome != "ok":
                    time.sleep(0.01)

    with meanwhile(ask, *((protocol,) for protocol in ("http", "grpc") * 2)):
        time.sleep(1)
        signalled = time.monotonic()
        served.process.send_signal(ending)
        code = served.process.wait(30)
        took = time.monotonic() - signalled
    flying = [outcome for start, end, outcome in asked if start < signalled < end]
    # "At once": the signal needs a moment to arrive, and what started in it is finished too.
    late = [outcome for start, _, outcome in asked if start > signalled + 0.5]
    # What was sent in the last moment may not have reached the server yet: it is refused, not lost.
    just = [outcome for start, end, outcome in asked if signalled - 0.3 < start < signalled < end]
    refused = sum("the server is stopping" in outcome for outcome in just)
    lost, answered = len(flying) - flying.count("ok") - refused, late.count("ok")
    note(
        "signal",
        in_flight=len(flying),
        refused=refused,
        lost=lost,
        new=len(late),
        answered=answered,
        seconds=round(took, 1),
    )
    assert code == 0 and took < 20 and flying and not lost and not answered, flying
    assert not folder.exists() and not shared_regions(folder.name)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
