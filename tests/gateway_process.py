"""A running `llmcfsr serve` with its gateway, and clients of it."""

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
from pathlib import Path

import psutil

from tests.load import meanwhile

JSON = {"content-type": "application/json"}
GOOD = {"history": ["B001", "B002"], "k": 5}


class Served:
    """A running `llmcfsr serve`."""

    def __init__(self, repository: Path, log: Path, *more: str):
        self.log = log
        command = [sys.executable, "-m", "llmcfsr_merlin.cli.main", "serve", str(repository), "--gateway-port", "0"]
        command += ["--grpc-port", "0", "--metrics-port", "0", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
        words = self.process.stdout.readline().split()
        assert words, log.read_text()
        self.port, self.grpc = int(words[1].rpartition(":")[2]), words[4].removeprefix("grpc://")

    def ask(self, method: str, path: str, body=None, headers=None, timeout: float = 20):
        """Status, headers and body as JSON; status 0 where the connection broke."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**(JSON if data is not None else {}), **(headers or {})})
            reply = connection.getresponse()
            text = reply.read()
            is_json = "json" in reply.getheader("content-type", "")
            return reply.status, dict(reply.getheaders()), json.loads(text) if is_json else text
        except (OSError, http.client.HTTPException) as error:
            return 0, {}, repr(error)
        finally:
            connection.close()

    def recommend(self, body, **options):
        return self.ask("POST", "/recommend", body, **options)

    def children(self) -> dict[str, psutil.Process]:
        found = {}
        for child in psutil.Process(self.process.pid).children():
            found["gateway" if "gateway.process" in " ".join(child.cmdline()) else "triton"] = child
        return found

    def stubs(self) -> list[psutil.Process]:
        return [child for child in self.children()["triton"].children(recursive=True) if "stub" in child.name()]

    def stop(self, ending=signal.SIGTERM) -> int:
        self.process.send_signal(ending)
        return self.process.wait(40)


@contextlib.contextmanager
def good_clients(served: Served, count: int = 4):
    """Clients in the background; yields the counter of what they got: ok, degraded, refused (503), or what else."""
    found = collections.Counter()

    def ask(stop: threading.Event) -> None:
        while not stop.is_set():
            status, headers, answer = served.recommend(GOOD)
            if status == 200 and len({item["id"] for item in answer["items"]}) == 5:
                found["degraded" if answer["degraded"] else "ok"] += 1
            elif status == 503 and "retry-after" in {name.lower() for name in headers}:
                found["refused"] += 1
            else:
                found[f"{status}: {answer}"[:150]] += 1
            time.sleep(0.005)

    with meanwhile(ask, *[()] * count):
        yield found


def bad(found: collections.Counter) -> dict:
    return {name: count for name, count in found.items() if name not in ("ok", "degraded", "refused")}
