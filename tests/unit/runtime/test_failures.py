"""What the machine lacks is one line that says so, however a library hides it; everything else passes unchanged."""

import errno
import os
import resource
import sqlite3
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import clear_failures, machine_failure


def foreign(name: str, module: str, text: str) -> Exception:
    return type(name, (Exception,), {"__module__": module})(text)


KilledWorker = foreign("KilledWorker", "distributed.scheduler", "task-1")
LACKING = [
    (OSError(errno.ENOSPC, "No space left on device", "/run/x"), "the disk is full (/run/x)"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    (PermissionError(errno.EACCES, "Permission denied", "/run/x"), "no permission to read or write (/run/x)"),
    (OSError(errno.EROFS, "Read-only file system", "/run/x"), "no permission to read or write (/run/x)"),
    (OSError(errno.EMFILE, "Too many open files", "/run/x"), "ulimit -n"),
    (OSError(errno.ENFILE, "Too many open files in system"), "too many open files"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    (OSError(errno.EIO, "Input/output error"), "the disk failed"),
    (OSError(errno.ESTALE, "Stale file handle"), "the disk failed"),
    (OSError("400000 requested and 1024 written"), "disk is full"),  # of np.ndarray.tofile
    (MemoryError(), "out of memory"),
    (np.core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("f8")), "out of memory"),
    (pa.lib.ArrowMemoryError("malloc of size 64 failed"), "out of memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
    (foreign("OutOfMemoryError", "torch", "CUDA out of memory"), "on the GPU"),
    (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk is full"),
    (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "disk is full"),
    (foreign("SafetensorError", "safetensors_rust", 'IoError(Os { code: 28, kind: StorageFull })'), "disk is full"),
    (foreign("SafetensorError", "safetensors_rust", "I/O error: File too large (os error 27)"), "ulimit -f"),
    (foreign("SafetensorError", "safetensors_rust", "Too many open files (os error 24)"), "ulimit -n"),
    (sqlite3.OperationalError("database or disk is full"), "disk is full"),
    (sqlite3.OperationalError("attempt to write a readonly database"), "no permission"),
    (KilledWorker, "cluster.memory_limit"),
    (BrokenProcessPool("terminated abruptly"), "was killed"),
    (CancelledError(), "scheduler disappeared"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "told"), LACKING, ids=lambda value: str(value)[:40])
def test_what_the_machine_lacks_is_one_line(error, told):
    with pytest.raises(InputError) as raised, clear_failures("train"):
        raise error
    line = str(raised.value)
    assert line.startswith("train: ") and told in line and "\n" not in line
    assert line.endswith("then run the same command again to continue")


@pytest.mark.parametrize(("error", "told"), LACKING[:3], ids=lambda value: str(value)[:40])
def test_it_is_found_behind_another_error(error, told):
    try:
        try:
            raise error
        except Exception as inner:
            raise ValueError("cannot save") from inner
    except ValueError as outer:
        assert told in machine_failure(outer)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("No space left"), ValueError("permission denied"), TypeError(), AssertionError(),
        FileNotFoundError(errno.ENOENT, "No such file", "x"), RuntimeError("size mismatch"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"), pa.ArrowInvalid("Parquet magic bytes not found"),
    ],
    ids=repr,
)  # fmt: skip
def test_other_errors_pass_unchanged(error):
    assert machine_failure(error) is None
    with pytest.raises(type(error)) as raised, clear_failures("train"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("kind", [InputError, MissingDependency])
def test_what_is_clear_already_stays(kind):
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as inner:
            raise kind("said already") from inner
    except kind as outer:
        assert machine_failure(outer) is None


def test_a_limit_of_file_sizes_is_told_from_a_full_disk(limited):
    limited(1 << 30)
    assert "ulimit -f" in machine_failure(RuntimeError("PytorchStreamWriter failed writing file data/0"))


@pytest.mark.parametrize("library", ["arrow", "torch", "safetensors", "numpy", "sqlite"])
def test_real_writers_that_hit_a_limit(library, limited, tmp_path):
    import torch
    from safetensors.torch import save_file

    numbers = np.random.default_rng(0).random(1 << 17)
    writers = {
        "arrow": lambda path: pq.write_table(pa.table({"x": numbers}), path),
        "torch": lambda path: torch.save(torch.from_numpy(numbers), path),
        "safetensors": lambda path: save_file({"x": torch.from_numpy(numbers)}, path),
        "numpy": lambda path: numbers.tofile(path),
        "sqlite": lambda path: sqlite3.connect(path).execute(
            "create table t as with recursive n(x) as (select 1 union all select x + 1 from n limit 100000) "
            "select * from n"
        ),
    }
    limited(1 << 16)
    told = "embed: (a file exceeded the file size limit|the disk is full|the disk failed)"
    with pytest.raises(InputError, match=told), clear_failures("embed"):
        writers[library](str(tmp_path / "file"))


def test_a_folder_without_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"), clear_failures("ingest"):
        (tmp_path / "x").mkdir()


@pytest.fixture
def limited():
    """Sets the largest size of a file that this process may write, and takes it back."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
