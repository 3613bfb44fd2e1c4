"""`llmcfsr serve` among enemies: who reaches its ports may ask and do nothing else, and is no danger to other clients.

LLMCFSR_ATTACKS: seconds of each load (2). LLMCFSR_SECURITY_OUT: a file for one JSON line of figures a test.
"""

import collections
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.probe import DIRECT, probe
from llmcfsr_merlin.serving.repository import export
from tests.load import meanwhile, note
from tests.served import IDS, write_model

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]
SECONDS = float(os.environ.get("LLMCFSR_ATTACKS", 2))
GOOD = {"inputs": [{"name": "HISTORY", "datatype": "BYTES", "shape": [1, 2], "data": ["B001", "B002"]}]}


class Served:
    """A running `llmcfsr serve`, behind a proxy variable that leads nowhere."""

    def __init__(self, repository: Path, log: Path):
        self.log = log
        command = [sys.executable, "-m", "llmcfsr_merlin.cli.main", "serve", str(repository)]
        command += ["--no-gateway", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        words = self.process.stdout.readline().split()
        self.http, self.grpc, self.key_file = words[1], words[2], Path(words[6])
        self.port = int(self.http.rpartition(":")[2])

    def post(self, path: str, body=b"", headers=None, timeout: float = 20):
        """Status and text; 0 where the connection broke."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.http + path, data=data, headers=headers or {})
        try:
            with DIRECT.open(request, timeout=timeout) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)

    def infer(self, *inputs: dict, model: str = "recommend", **more):
        return self.post(f"/v2/models/{model}/infer", {"inputs": list(inputs), **more})

    def binary(self, raw: bytes, shape: list[int], name: str = "HISTORY"):
        described = {"name": name, "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [described]}).encode()
        return self.post("/v2/models/recommend/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))})

    def triton(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def stubs(self) -> list[psutil.Process]:
        return [child for child in self.triton().children(recursive=True) if "stub" in child.name()]

    def answers_again(self, seconds: float = 60) -> float:
        """Seconds until a real request is answered."""
        start = time.monotonic()
        while (reason := probe(self.http, 5)) is not None:
            assert time.monotonic() - start < seconds and self.process.poll() is None, (reason, self.log.read_text())
            time.sleep(0.1)
        return round(time.monotonic() - start, 1)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    export(write_model(folder / "train"), folder / "repo", ServeConfig(max_batch_size=16, max_top_k=50))
    return folder / "repo"


@pytest.fixture(scope="module")
def served(repository, tmp_path_factory):
    running = Served(repository, tmp_path_factory.mktemp("log") / "stderr")
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


@contextlib.contextmanager
def good_clients(served: Served, count: int = 4):
    """Clients of both protocols in the background; yields the counter of what they got ("ok" or the error)."""
    found = collections.Counter()

    def ask(stop: threading.Event, url: str) -> None:
        with Client(url) as client:
            while not stop.is_set():
                try:
                    items = client.answer([["B001", "B002"]], 5).items
                    found["ok" if len(set(items[0])) == 5 else f"wrong: {items}"] += 1
                except InputError as error:
                    found[str(error)[:150]] += 1
                    time.sleep(0.02)

    with meanwhile(ask, *(((served.http, served.grpc)[i % 2],) for i in range(count))):
        yield found


def failures(found: collections.Counter) -> int:
    return sum(found.values()) - found["ok"]


def test_the_key_is_for_its_owner_alone(served):
    key = served.key_file.read_text().split(": ")[1].strip()
    assert served.key_file.stat().st_mode & 0o777 == 0o600 and served.key_file.parent.stat().st_mode & 0o077 == 0
    for process in (served.process.pid, served.triton().pid, *(stub.pid for stub in served.stubs())):
        assert key not in Path(f"/proc/{process}/cmdline").read_text()
    name, value = served.key_file.read_text().strip().split(": ")
    assert served.post("/v2/repository/index", headers={name: value})[0] == 200


CODE = "open({marker!r}, 'w').write('ran')\nfrom llmcfsr_merlin.serving.backend import StepModel as TritonPythonModel\n"


def attack_paths() -> list[tuple[str, dict]]:
    register = {"key": "/llmcfsr", "offset": 0, "byte_size": 64}
    return [
        ("/v2/repository/models/{new}/load", {"parameters": {"config": "{}", "file:1/model.py": "CODE"}}),
        ("/v2/repository/models/recommend/load", {}),
        ("/v2/repository/models/recommend/unload", {"parameters": {"unload_dependents": True}}),
        ("/v2/repository/models/encode/unload", {}),
        ("/v2/repository/index", {}),
        ("/v2/systemsharedmemory/region/a/register", register),
        ("/v2/systemsharedmemory/status", {}),
        ("/v2/systemsharedmemory/unregister", {}),
        ("/v2/cudasharedmemory/region/a/register", {**register, "raw_handle": {"b64": ""}}),
        ("/v2/logging", {"log_file": "/tmp/x", "log_verbose_level": 4}),
        ("/v2/trace/setting", {"trace_file": "/tmp/x", "trace_level": ["TENSORS"]}),
        ("/v2/models/recommend/trace/setting", {"trace_file": "/tmp/x"}),
        ("/v2/models/recommend/stats", {}),
    ]


def test_without_the_key_nothing_is_loaded_unloaded_registered_or_set(served, tmp_path):
    import base64

    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    key, marker, tried, passed = served.key_file.read_text().split(": ")[1].strip(), tmp_path / "marker", 0, []
    code = base64.b64encode(CODE.format(marker=str(marker)).encode()).decode()
    headers = [
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain", "Origin": "http://127.0.0.1:9999"},
        {"llmcfsr-key": ""},
        {"llmcfsr-key": key[:-1]},
        {"llmcfsr-key": key.upper() + "0"},
        {"triton-grpc-protocol-llmcfsr-key": key},
        {"Authorization": key},
    ]
    for path, body in attack_paths():
        text = json.dumps(body).replace("CODE", code).encode()
        for header in headers:
            for spelled in (
                path,
                path.replace("/v2/", "//v2//"),
                path + "/",
                path.replace("repo", "%72epo"),
                path + "?a=b",
            ):
                status, reply = served.post(spelled.format(new="evil"), text, header)
                tried += 1
                if status == 200:
                    passed.append((spelled, header, reply))
        for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
            connection.request(method, path.format(new="evil"), text)
            tried += 1
            if connection.getresponse().status == 200:
                passed.append((method, path))
            connection.close()
    config = json.dumps({"backend": "python", "instance_group": [{"kind": "KIND_CPU"}]})
    with triton.InferenceServerClient(served.grpc.removeprefix("grpc://")) as client:
        files = {"file:1/model.py": CODE.format(marker=str(marker)).encode()}
        for sent in ({}, {"llmcfsr-key": key}, {"triton-grpc-protocol-llmcfsr-key": "no"}):
            for call in (
                lambda sent: client.load_model("evil", headers=sent, config=config, files=files),
                lambda sent: client.load_model("recommend", headers=sent),
                lambda sent: client.unload_model("recommend", headers=sent, unload_dependents=True),
                lambda sent: client.get_model_repository_index(headers=sent),
                lambda sent: client.register_system_shared_memory("a", "/a", 64, headers=sent),
                lambda sent: client.get_system_shared_memory_status(headers=sent),
                lambda sent: client.update_log_settings({"log_verbose_level": 4}, headers=sent),
                lambda sent: client.get_log_settings(headers=sent),
                lambda sent: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}, headers=sent),
                lambda sent: client.get_inference_statistics(headers=sent),
            ):
                tried += 1
                with contextlib.suppress(InferenceServerException):
                    call(sent)
                    passed.append(("grpc", sent))
    note("restricted", tried=tried, passed=len(passed), code_ran=marker.exists())
    assert not passed and not marker.exists()
    assert served.post("/v2/models/recommend/infer", GOOD)[0] == 200


def element(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(text) if length is None else length) + text


LIES = [
    element(b"B001", 1000), element(b"B001", 2**32 - 1), element(b"B001", 5), element(b"B001", 1), b"abc", b"",
    element(b"B001") * 2, element(b"B001", 0), element(b"\xff\xfe"), element(b"B001") + element(b"B", 9),
]  # fmt: skip


def test_lengths_that_lie_fail_nobody_else(served):
    random_ = random.Random(0)
    refused, end = collections.Counter(), time.monotonic() + SECONDS
    with good_clients(served) as found:
        while time.monotonic() < end:
            status, text = served.binary(random_.choice(LIES), [1, random_.choice((1, 2))])
            refused[status] += 1
            assert status in (200, 400) and (status == 200 or "HISTORY" in text), text
    note("lying lengths", good=found["ok"], failed=failures(found), lies=dict(refused))
    assert refused[400] and found["ok"] > 10 and not failures(found), found


def wild(random_: random.Random, tag: int) -> tuple[str, list[dict]]:
    """A request to an inner step with a field out of its range."""
    tag = random_.choice((tag, tag, tag, 0, -1))

    def tensor(name, data, datatype="INT64"):
        return {"name": name, "datatype": datatype, "shape": [1, len(data)], "data": data}

    values = (-1, 1, 2, 3, 62, 63, 10**6, 2**62, -(2**62))
    if random_.random() < 0.5:
        codes = [random_.choice(values) for _ in range(12)]
        k = random_.choice((0, -1, 1, 51, 2**31 - 1))
        lists = [tensor(name, [random_.choice(values)] * random_.randint(1, 4)) for name in ("BLOCK", "ALLOW_CODES")]
        return "rank", [tensor("CODES", codes), tensor("K", [k], "INT32"), *lists, tensor("BUNDLE", [tag])]
    width = random_.randint(1, 5)
    items = tensor("ITEM_CODES", [random_.choice(values) for _ in range(width)])
    scores = tensor("SCORES", [1.0] * random_.choice((width, 3)), "FP32")
    return "decode", [items, scores, tensor("K", [random_.choice((0, 2, 2**31 - 1))], "INT32"), tensor("RANKED", [tag])]


def test_inner_steps_refuse_what_the_step_before_did_not_make(served, repository):
    random_, refused, end = random.Random(1), collections.Counter(), time.monotonic() + SECONDS
    encoded = json.loads(served.infer(*GOOD["inputs"], model="encode")[1])["outputs"]
    (tag,) = (output["data"][0] for output in encoded if output["name"] == "BUNDLE")
    with good_clients(served) as found:
        while time.monotonic() < end:
            model, inputs = wild(random_, tag)
            status, text = served.infer(*inputs, model=model)
            refused[status] += 1
            named = re.search(r"CODES|K:|BLOCK|SCORES|serves another bundle", text)
            assert status == 200 or (status == 400 and named and "/" not in text and "Traceback" not in text), text
    note("wild steps", good=found["ok"], failed=failures(found), refused=dict(refused))
    assert refused[400] > 10 * refused[200] and found["ok"] > 10 and not failures(found), found


def test_a_shape_that_overflows_is_refused_as_its_own(served):
    before = served.triton().pid
    for name in ("HISTORY", "ALLOW", "DENY"):
        inputs = (
            []
            if name == "HISTORY"
            else [{"name": "HISTORY", "datatype": "BYTES", "shape": [4, 1], "data": ["B001"] * 4}]
        )
        status, text = served.infer(*inputs, {"name": name, "datatype": "BYTES", "shape": [4, 2**62], "data": []})
        assert status == 400 and name in text, text
        assert served.post("/v2/models/recommend/infer", GOOD)[0] == 200
    assert served.triton().pid == before


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
