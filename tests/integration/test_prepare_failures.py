"""prepare on a cluster that is joined, with workers that die, on a full disk: one clear line, and it continues."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster

from llmcfsr_merlin.config.cluster_settings import ClusterConfig
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset import prepare_stage as stage
from llmcfsr_merlin.dataset.names import ITEM, ROW, TIME, USER
from llmcfsr_merlin.dataset.prepare import filters
from llmcfsr_merlin.dataset.prepare import prepare as features
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.runtime import clusters
from llmcfsr_merlin.runtime.engine import Engine, engine
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import Manifest, seal
from tests.integration.dying import dies

SETTINGS = PrepareConfig(min_user=4, min_item=3)
ROWS = 3000


def log_in(folder: Path) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    log = pd.DataFrame({
        USER: [f"u{x}" for x in random.integers(0, 400, ROWS)], ITEM: [f"i{x}" for x in random.zipf(1.4, ROWS) % 500],
        TIME: random.integers(0, 40, ROWS), ROW: np.arange(ROWS),
    })  # fmt: skip
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), folder / "part-00000.parquet", row_group_size=200)
    return folder


def content(out: Path) -> dict:
    names = ("sequences", "train", "valid", "test", "vocabulary.parquet", "schema.pbtxt")
    return {name: (out / name).read_bytes() if name.endswith("txt") else pq.read_table(out / name) for name in names}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("expected")
    report = prepare(log_in(tmp / "in"), tmp / "out", SETTINGS, Engine("single", False, 1, 1 << 30, 1 << 30))
    return report, content(tmp / "out")


class Processes:
    """A dask scheduler and workers as processes of their own; `stop` kills them all, whatever state they are in."""

    def __init__(self, folder: Path) -> None:
        self.where, self.started = folder / "scheduler.json", []

    def start(self, worker: list[str], prelude: str = "", dashboard: str = "--no-dashboard") -> str:
        """Start both, and return the address of the scheduler; a task may lose its worker once."""
        local = ["--host", "127.0.0.1", "--port", "0", *dashboard.split()]
        self._process("scheduler", [*local, "--scheduler-file", str(self.where)])
        for _ in range(600):
            if self.where.is_file() and self.where.read_text().endswith("}"):
                break
            time.sleep(0.1)
        address = json.loads(self.where.read_text())["address"]
        self._process("worker", [*worker, "--no-dashboard", address], prelude)
        return address

    def _process(self, kind: str, options: list[str], prelude: str = "") -> None:
        code = f"import sys; sys.argv = {['dask', *options]!r}; {prelude}\n"
        code += f"from distributed.cli.dask_{kind} import main; main()"
        environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-c", code]
        self.started.append(subprocess.Popen(command, env=environment, start_new_session=True, **quiet))

    def stop(self) -> None:
        for one in self.started:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()


# Not a LocalCluster: closing one while a nanny restarts a killed worker can wait for ever.
@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    processes = Processes(tmp_path_factory.mktemp("scheduler"))
    try:
        address = processes.start(["--nworkers", "2", "--nthreads", "1"], dashboard="--dashboard-address :0")
        with Client(address) as client:  # an engine that joins before the second one is there takes one for all
            client.wait_for_workers(2, timeout=120)
        yield address
    finally:
        processes.stop()


def same(found: dict, expected: dict) -> bool:
    varying = {"partitions", "buckets", "shuffle_mb", "output_mb"}
    return all(found[name] == value for name, value in expected.items() if name not in varying)


def test_joins_a_scheduler_by_its_address(tmp_path, scheduler, expected, capfd):
    config = ClusterConfig(scheduler=scheduler, partition_size=f"{300 * 160}B")
    with engine(config) as on:
        assert (on.kind, on.gpu, on.workers) == ("scheduler", False, 2) and scheduler.startswith("tcp://")
        report = prepare(log_in(tmp_path / "in"), tmp_path / "out", SETTINGS, on)
    assert same(report, expected[0]) and report["partitions"] > 5 and content(tmp_path / "out") == expected[1]
    said = capfd.readouterr().err
    assert "dashboard http" in said and "rows/s" in said and "interactions out" in said


def test_no_scheduler_and_no_worker(monkeypatch):
    monkeypatch.setattr(clusters, "_PATIENCE", 1)
    with pytest.raises(InputError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        engine(ClusterConfig(scheduler="tcp://127.0.0.1:9")).__enter__()
    with LocalCluster(n_workers=0, dashboard_address=":0") as empty, pytest.raises(InputError, match="has no worker"):
        engine(ClusterConfig(scheduler=empty.scheduler_address)).__enter__()


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


def test_scheduler_that_goes_away_under_way(processes):
    address = processes.start(["--no-nanny"])
    scheduler = processes.started[0]
    gone = pytest.raises(InputError, match=r"^wait: the dask scheduler disappeared")
    with gone, engine(ClusterConfig(scheduler=address)) as on:
        threading.Timer(0.5, scheduler.kill).start()
        on.map(time.sleep, [1] * 20, "wait")


def test_worker_without_this_package(processes):
    address = processes.start(["--no-nanny"], "sys.modules['llmcfsr_merlin'] = None")
    with pytest.raises(InputError, match=r"cannot import this package.*install llmcfsr-merlin"):
        engine(ClusterConfig(scheduler=address)).__enter__()


@pytest.mark.parametrize(
    "where, name", [(features, "scatter"), (features, "sort_bucket"), (filters, "_round"), (features, "write_bucket")]
)
def test_a_killed_worker_changes_nothing(tmp_path, scheduler, expected, monkeypatch, where, name):
    monkeypatch.setattr(where, name, partial(dies, getattr(where, name), tmp_path / "killed", 1))
    with engine(ClusterConfig(scheduler=scheduler, partition_size=f"{600 * 160}B")) as on:
        report = prepare(log_in(tmp_path / "in"), tmp_path / "out", SETTINGS, on)
    assert (tmp_path / "killed0").exists()
    assert same(report, expected[0]) and content(tmp_path / "out") == expected[1]


def test_workers_that_always_die_are_one_line_and_a_rerun_continues(tmp_path, scheduler, expected, monkeypatch):
    config = ClusterConfig(scheduler=scheduler, partition_size=f"{600 * 160}B")
    source = log_in(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(features, "sort_bucket", partial(dies, features.sort_bucket, tmp_path / "killed", 9))
        one_line = pytest.raises(InputError, match=r"sort: a dask worker kept dying.*cluster\.memory_limit")
        with one_line as caught, engine(config) as on:
            prepare(source, tmp_path / "out", SETTINGS, on)
    assert "\n" not in str(caught.value)
    shuffled = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".shuffle").glob("*.items")}
    assert shuffled
    kept = []

    def watch(buckets, *rest):
        kept.extend(path.stat().st_mtime_ns == at for path, at in shuffled.items())
        return filters.apply_filters(buckets, *rest)

    monkeypatch.setattr(features, "apply_filters", watch)
    with engine(config) as on:
        prepare(source, tmp_path / "out", SETTINGS, on)
    assert kept and all(kept) and content(tmp_path / "out") == expected[1]


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs and a function that sets its size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a tmpfs (root)")
    try:
        yield disk, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_a_rerun_continues(small_disk, expected):
    disk, resize = small_disk
    run_dir = disk / "run"
    log_in(run_dir / "ingest" / "interactions")
    seal(run_dir / "ingest", "ingest", "key", {})
    config = Config.load(None, ["prepare.min_user=4", f"cluster.partition_size={600 * 160}B", "cluster.workers=1"])
    used = sum(path.stat().st_blocks * 512 for path in run_dir.rglob("*")) + (1 << 14)
    failures, size = [], used
    while not (run_dir / "prepare").exists():
        resize(size)
        try:
            stage.run(config, run_dir)
        except InputError as error:
            assert "disk is full" in str(error) and "\n" not in str(error), error
            failures.append(str(error))
        size += 4 << 10
    stages = {failure.split(":")[0] for failure in failures}
    assert {"shuffle", "prepare"} <= stages and len(failures) > 10
    Manifest.load(run_dir / "prepare").verify(run_dir / "prepare")
    assert content(run_dir / "prepare") == expected[1]


def test_a_quota_is_a_full_disk(tmp_path):
    """A limit on the size of a file, which needs no root; in a process of its own, for it meets every thread."""
    source, out = log_in(tmp_path / "in"), tmp_path / "out"
    code = f"""
import resource
from tests.integration.test_prepare_failures import *
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
with pytest.raises(InputError, match="ulimit -f"):
    prepare(Path({str(source)!r}), Path({str(out)!r}), SETTINGS, Engine("single", False, 1, 1 << 30, 600 * 160))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stdin=subprocess.DEVNULL)
    prepare(source, out, SETTINGS, Engine("single", False, 1, 1 << 30, 600 * 160))
