"""What is asked of cudf, cupy and rmm is there, by name and signature; what it does needs a GPU (`pytest -m gpu`)."""

import importlib
import inspect
import sys
from types import SimpleNamespace

import pytest

from llmcfsr_merlin.runtime import device


@pytest.fixture
def rapids(monkeypatch):
    """cudf, cupy and rmm, which import without a GPU where nothing is initialised."""
    monkeypatch.setenv("RAPIDS_NO_INITIALIZE", "1")
    pytest.importorskip("cudf", reason="cudf is not installed")
    cudf, cupy = device.libraries()
    return cudf, cupy, importlib.import_module("rmm")


def test_cudf_has_what_is_called(rapids):
    cudf, _, _ = rapids
    read = inspect.signature(cudf.read_parquet).parameters
    assert {"columns", "row_groups", "use_pandas_metadata"} <= set(read)
    calls = {
        cudf.Series.factorize: (), cudf.Series.hash_values: ("method",), cudf.Series.take: ("indices",),
        cudf.Series.sort_values: (), cudf.Series.reset_index: ("drop",), cudf.Series.isna: (), cudf.Series.dropna: (),
        cudf.Series.fillna: ("value",), cudf.Series.to_arrow: (), cudf.DataFrame.pop: (),
        cudf.concat: ("objs", "ignore_index"),
    }  # fmt: skip
    for call, names in calls.items():
        assert set(names) <= set(inspect.signature(call).parameters), call
    assert all(hasattr(kind, "values") for kind in (cudf.Series, cudf.Index))


def test_cupy_has_what_is_called(rapids):
    _, cupy, _ = rapids
    names = (
        "arange", "argsort", "asarray", "asnumpy", "bincount", "concatenate", "cumsum", "empty", "flatnonzero", "full",
        "minimum", "ones", "zeros",
    )  # fmt: skip
    assert [name for name in names if not hasattr(cupy, name)] == []
    assert "minlength" in inspect.signature(cupy.bincount).parameters
    for name in ("get_allocator", "set_allocator", "get_current_stream"):
        assert hasattr(cupy.cuda, name)


def test_rmm_has_what_is_called(rapids):
    _, _, rmm = rapids
    assert hasattr(rmm.mr, "PoolMemoryResource") and hasattr(rmm.mr, "CudaMemoryResource")
    assert hasattr(rmm.mr, "get_current_device_resource") and hasattr(rmm.mr, "set_current_device_resource")
    assert callable(importlib.import_module("rmm.allocators.cupy").rmm_cupy_allocator)


class Machine:
    """Stand-ins of the three libraries that record what the pool is made of."""

    def __init__(self, pool=True):
        self.resource, self.allocator = "before", "default"
        self.mr = SimpleNamespace(
            CudaMemoryResource=lambda: "cuda", get_current_device_resource=lambda: self.resource,
            set_current_device_resource=lambda value: setattr(self, "resource", value),
        )  # fmt: skip
        if pool:
            self.mr.PoolMemoryResource = lambda upstream, size: (upstream, size)
        cuda = SimpleNamespace(
            get_allocator=lambda: self.allocator, set_allocator=lambda value: setattr(self, "allocator", value)
        )
        self.modules = {
            "cudf": SimpleNamespace(), "cupy": SimpleNamespace(cuda=cuda), "rmm": SimpleNamespace(mr=self.mr),
            "rmm.allocators": SimpleNamespace(), "rmm.allocators.cupy": SimpleNamespace(rmm_cupy_allocator="rmm"),
        }  # fmt: skip


def test_the_pool_ends_with_the_work(monkeypatch):
    machine = Machine()
    for name, module in machine.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(KeyError), device.open_device(10_001) as (cudf, cupy):
        assert cudf is sys.modules["cudf"] and cupy is sys.modules["cupy"]
        assert machine.resource == ("cuda", 4864) and machine.allocator == "rmm"  # half, a multiple of 256
        raise KeyError
    assert (machine.resource, machine.allocator) == ("before", "default")


def test_without_a_pool_the_libraries_allocate_for_themselves(monkeypatch):
    machine = Machine(pool=False)
    for name, module in machine.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with device.open_device(10_001):
        assert (machine.resource, machine.allocator) == ("before", "default")
    assert (machine.resource, machine.allocator) == ("before", "default")
