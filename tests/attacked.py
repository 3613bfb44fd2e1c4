"""A running `llmcfsr serve` that is attacked, and clients of it that should not notice."""

import collections
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.probe import DIRECT, probe
from llmcfsr_merlin.serving.repository import export
from tests.load import meanwhile
from tests.served import write_model

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


def exported(folder: Path) -> Path:
    """A model repository in a folder."""
    export(write_model(folder / "train"), folder / "repo", ServeConfig(max_batch_size=16, max_top_k=50))
    return folder / "repo"


@contextlib.contextmanager
def serving(repository: Path, log: Path) -> Iterator[Served]:
    """The running server; it must end in order when it is asked to."""
    running = Served(repository, log)
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
