"""What is decided before and around a tritonserver, without one: ports, key, paths, restarts."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import launch, supervise
from llmcfsr_merlin.serving.access import RESTRICTED, hide, restrictions, write_key
from llmcfsr_merlin.serving.client import _channel_options
from llmcfsr_merlin.serving.ports import reserve
from llmcfsr_merlin.serving.probe import probe
from llmcfsr_merlin.serving.repository import export, repository_of
from llmcfsr_merlin.serving.server import Server
from llmcfsr_merlin.serving.wire import Unreadable, reader
from tests.served import write_model

FREE = {"http": 0, "grpc": 0, "metrics": 0}


@pytest.fixture
def listening():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_free_ports_differ():
    assert len(set(reserve("127.0.0.1", FREE).values())) == 3


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_a_busy_port_is_refused_by_name(listening, name, host):
    with pytest.raises(InputError, match=rf"{name} port {listening} .*in use.*--{name}-port"):
        reserve(host, {**FREE, name: listening})


def test_a_port_of_a_server_that_just_ended_is_free():
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        client.connect(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # this side closes first: its port stays in TIME_WAIT
    assert reserve("127.0.0.1", {**FREE, "http": port})["http"] == port


@pytest.mark.parametrize(
    "host, ports, message",
    [
        ("127.0.0.1", {"http": 70000}, "--http-port: expected 0 .* to 65535, found 70000"),
        ("127.0.0.1", {"grpc": -1}, "--grpc-port"),
        ("127.0.0.1", {"http": 21999, "metrics": 21999}, "port of its own"),
        ("no-such-host.invalid", {}, "--host: expected an IPv4 address or a name"),
        ("::1", {}, "--host: expected an IPv4 address"),
        ("192.0.2.1", {}, "--host: expected an address of this machine"),
    ],
)
def test_ports_and_hosts_that_cannot_be(host, ports, message):
    with pytest.raises(InputError, match=message):
        reserve(host, FREE | ports)


def test_serve_refuses_a_busy_port_before_loading(tmp_path, listening, capsys, monkeypatch):
    export(write_model(tmp_path / "train"), tmp_path / "repo", ServeConfig())
    monkeypatch.setattr(launch, "binary_for", lambda repository: Path("/bin/false"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    assert main(["serve", str(tmp_path / "repo"), "--metrics-port", str(listening)]) == 1
    shown = capsys.readouterr()
    assert f"metrics port {listening}" in shown.err and shown.err.count("\n") == 1 and "ready" not in shown.out


@pytest.mark.parametrize("layout", ["ensemble", "merged"])
def test_a_repository_for_gpus_needs_one(tmp_path, capsys, monkeypatch, layout):
    monkeypatch.setattr(launch, "binary_for", lambda repository: pytest.fail("a GPU was taken to be there"))
    for device in ("gpu", "auto", "cpu"):
        serve = ServeConfig(layout=layout, device=device)
        export(write_model(tmp_path / device / "train"), tmp_path / device / "repo", serve)
    monkeypatch.setattr(launch, "_gpus", lambda: 0)
    assert main(["serve", str(tmp_path / "gpu/repo")]) == 1
    shown = capsys.readouterr()
    assert "serve.device=gpu, and this machine shows no GPU" in shown.err and shown.err.count("\n") == 1
    launch.check_device(tmp_path / "auto/repo")
    launch.check_device(tmp_path / "cpu/repo")
    monkeypatch.setattr(launch, "_gpus", lambda: 1)
    launch.check_device(tmp_path / "gpu/repo")


def test_a_driver_that_is_not_there_shows_no_gpu(monkeypatch):
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert launch._gpus() == 0


def test_a_run_directory_and_a_repository_are_served(tmp_path):
    export(write_model(tmp_path / "train"), tmp_path / "run/export/model_repo", ServeConfig())
    assert repository_of(tmp_path / "run") == repository_of(tmp_path / "run/export/model_repo")
    with pytest.raises(InputError, match="llmcfsr export"):
        Server(repository_of(tmp_path / "none")).start()


def test_key_file(tmp_path):
    path = tmp_path / "key"
    keys = {write_key(path) for _ in range(3)}
    assert len(keys) == 3 and path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("llmcfsr-key: ") and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").write_text("a letter")
    with pytest.raises(InputError, match="another file"):
        write_key(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "a letter"
    with pytest.raises(InputError, match="name another"):
        write_key(tmp_path / "no/folder/key")


def test_a_process_loses_its_key_from_the_process_list():
    key = "0123456789abcdef" * 4
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *restrictions(key)]) as process:
        try:
            while b"time.sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.01)
            assert hide(process.pid, key)
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert key.encode() not in shown and shown.count(b"*" * len(key)) == 2
        finally:
            process.kill()
    assert not hide(process.pid, key)


@pytest.mark.parametrize(
    "name", ["R&D", "it's", "beauty(1)", "a$HOME", 'q"', "b`id`", "c;d", "e\nf", "g h", "ü", "*?[x]"]
)
def test_triton_is_given_plain_paths_alone(tmp_path, monkeypatch, name):
    for variable in (tmp_path / name, tmp_path):
        variable.mkdir(exist_ok=True)
        monkeypatch.setattr(launch.tempfile, "tempdir", str(variable))
        folder = launch.private_folder(tmp_path / name, Path("/opt/tritonserver/bin/tritonserver"))
        try:
            assert launch._PLAIN.fullmatch(str(folder)) and folder.stat().st_mode & 0o077 == 0
            assert (folder / "repository").resolve() == (tmp_path / name).resolve()
            line = launch.command(Path("/bin/t"), folder, "127.0.0.1", {"http": 1, "grpc": 2, "metrics": 3}, "k" * 64)
            assert name not in " ".join(line)
        finally:
            (folder / "repository").unlink()
            folder.rmdir()


def test_a_temporary_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(launch.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"own folder cannot be written .*TMPDIR"):
        launch.private_folder(tmp_path, Path("/opt/tritonserver/bin/tritonserver"))


def test_the_command_restricts_both_protocols_and_binds_every_port():
    line = launch.command(Path("/bin/t"), Path("/tmp/f"), "127.0.0.1", {"http": 1, "grpc": 2, "metrics": 3}, "secret")
    assert f"--http-restricted-api={RESTRICTED}:llmcfsr-key=secret" in line
    assert f"--grpc-restricted-protocol={RESTRICTED}:llmcfsr-key=secret" in line
    assert set(RESTRICTED.split(",")) == {"model-repository", "shared-memory", "trace", "logging", "statistics"}
    for name in ("http", "grpc", "metrics"):
        assert line[line.index(f"--{name}-address") + 1] == "127.0.0.1"


@pytest.mark.parametrize(
    "address, direct",
    [("localhost:1", True), ("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("0.0.0.0:1", True),
     ("shop.example:1", False), ("10.0.0.1:1", False)],
)  # fmt: skip
def test_only_this_machine_is_asked_around_a_proxy(address, direct):
    assert (("grpc.enable_http_proxy", 0) in _channel_options(address)) == direct


def test_probe_says_what_is_wrong(listening, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "no answer within" in probe(f"http://127.0.0.1:{listening}", 0.2)
    assert "refused" in probe("http://127.0.0.1:1", 1)


def deserialize(encoded: bytes) -> np.ndarray:
    """As Triton's: elements of four bytes here."""
    if len(encoded) % 4:
        raise ValueError("incomplete")
    return np.array([encoded[i : i + 4] for i in range(0, len(encoded), 4)], dtype=object)


def test_what_cannot_be_read_is_an_array_with_a_reason():
    read = reader(deserialize)
    assert read(b"B001B002").reshape([1, 2]).tolist() == [[b"B001", b"B002"]]
    assert not isinstance(read(b"B001B002").reshape([1, 2]), Unreadable)
    for encoded, shape in ((b"", [4, 2**62]), (b"B001", [1, 2]), (b"B001", [2**63, 1]), (b"B0", [1, 1])):
        found = read(encoded).reshape(shape)
        assert isinstance(found, Unreadable) and found.reason.startswith("expected"), (encoded, shape)


class Failing:
    """A server that fails to start `failures` times."""

    def __init__(self, failures: int):
        self.failures = failures

    def restart(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise InputError("no memory")


@pytest.mark.parametrize("failures", [0, 2, 4])
def test_a_restart_is_tried_again(monkeypatch, capsys, failures):
    pauses = []
    monkeypatch.setattr(supervise.time, "sleep", pauses.append)
    supervise._restart(Failing(failures), "ended by SIGABRT")
    told = capsys.readouterr().err
    assert "ended by SIGABRT: restarting it" in told and told.count("no memory") == failures
    assert "answers again after" in told and pauses == [0, 1, 2, 4, 8][: failures + 1]


def test_a_server_that_does_not_start_again_is_given_up(monkeypatch):
    monkeypatch.setattr(supervise.time, "sleep", lambda _: None)
    with pytest.raises(InputError, match=r"5 attempts, giving up\. The last one: no memory"):
        supervise._restart(Failing(9), "ended by SIGABRT")


class Watched:
    """A server whose requests have these outcomes."""

    running = True

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def trouble(self, _: float):
        return self.outcomes.pop(0)


@pytest.mark.parametrize(
    "outcomes, left",
    [([None, None, "answers 500", "answers 500"], 0), ([None, "answers 500", None, "answers 400", "answers 400"], 0),
     (["Stub process is not healthy", None], 1)],
)  # fmt: skip
def test_one_bad_answer_is_asked_again(monkeypatch, outcomes, left):
    monkeypatch.setattr(supervise, "_PERIOD", 0)
    monkeypatch.setattr(supervise, "_SHARE", 0)
    monkeypatch.setattr(supervise.time, "sleep", lambda _: None)
    server = Watched(*outcomes)
    assert supervise._next_trouble(server) and len(server.outcomes) == left
