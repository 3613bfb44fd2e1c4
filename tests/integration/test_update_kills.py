"""kill -9 in every stage of an update while a server answers: the same command goes on, and nobody notices."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmcfsr_merlin import InputError, run_stages
from llmcfsr_merlin.runtime.manifest import Manifest
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.repository import repository_of, versions
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from tests.days import shop, write_days

pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
    pytest.mark.timeout(1800),
]
STAGES = ("prepare", "embed", "yesterday", "train", "evaluate", "export", "gate")
HISTORIES = [["i0000", "i0005"], ["i0010"], [], ["i0058", "i0003"]]
# Times stand in the first; the others are NVTabular's own, which name temporary folders.
VARYING = ("history.json", "metadata.json", "workflow.pkl")


def start(folder: Path, run: str, *more: str) -> subprocess.Popen:
    words = [
        sys.executable, "-m", "llmcfsr_merlin.cli.main", "update", str(folder / "base" / "config.json"),
        "--day", str(folder / "day1.csv"), "--from", str(folder / "base"), "--run", str(folder / run), *more,
    ]  # fmt: skip
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def killed_in(process: subprocess.Popen, line: str, after: float) -> str:
    """Kill the process and all that it started `after` seconds after it has said `line`; what it said."""
    said = []
    for text in process.stdout:
        said.append(text)
        if text.startswith(line):
            time.sleep(after)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "".join(said)
    return "".join(said)


def content(run: Path) -> dict[str, str]:
    found = {}
    for stage in ("ingest", "prepare", "embed", "yesterday", "day", "train", "evaluate"):
        manifest = Manifest.load(run / stage)
        manifest.verify(run / stage)
        found |= {f"{stage}/{name}": sha for name, sha in manifest.files.items() if not name.endswith(VARYING)}
    return found


def test_the_old_version_answers_until_the_new_one_does(tmp_path):
    write_days(tmp_path)
    config = shop(tmp_path, **{"train.procedure": "transformers"})
    run_stages(config, tmp_path / "base", ("ingest", "prepare", "embed", "train", "export"))
    repository = repository_of(tmp_path / "base")
    failures, answers, stop = [], [], threading.Event()
    with Server(repository, threads=1, key_file=tmp_path / "key") as server:

        def ask() -> None:
            with Client(server.grpc_url) as client:
                while not stop.is_set():
                    try:
                        answers.append(tuple(client.answer(HISTORIES[:1], 5).items[0]))
                    except InputError as error:
                        failures.append(str(error))
                    time.sleep(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            out = ("--publish", str(tmp_path / "base"), "--url", server.http_url, "--key-file", str(tmp_path / "key"))
            for number, stage in enumerate(STAGES):
                said = killed_in(start(tmp_path, "one", *out), f"{stage} ...", 0.2 * number % 0.7)
                assert "published" not in said and versions(repository) == [1]
            before = set(answers)
            killed_in(start(tmp_path, "one", *out), "  version 2", 0.0)  # published, and perhaps loaded in part
            done = start(tmp_path, "one", *out)
            said, _ = done.communicate(timeout=600)
            assert done.returncode == 0, said
            assert "published: version 2" in said and "train: nothing changed, skipped" in said
            time.sleep(1)
        finally:
            stop.set()
            asking.join()
        assert not failures and len(before) == 1 and len(answers) > 100, "the old version answered throughout"
        assert versions(repository) == [1, 2] and len(set(answers)) <= 2
        assert check_served(tmp_path / "one", server.grpc_url, HISTORIES, 50).passed
    quiet = start(tmp_path, "quiet", "--set", "update.check_served=false")
    said, _ = quiet.communicate(timeout=600)
    assert quiet.returncode == 0, said
    assert content(tmp_path / "one") == content(tmp_path / "quiet"), "as if nobody had stopped it"
