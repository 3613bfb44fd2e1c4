"""Shims for Merlin 23.8 on newer releases of its dependencies: import this before dask.dataframe, merlin or nvtabular.

Each shim names the release that made it necessary. With the versions Merlin was released for (the container,
CPU) none of them changes anything. For Transformers4Rec: training/t4rec_compat.py.
"""

import importlib.util
import os
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np

from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.runtime.supported import fits

_DASK = {
    # dask 2024.3 plans queries with dask-expr, whose frames are not the graphs that merlin-core takes apart.
    "dataframe.query-planning": False,
    # dask 2023.7.1 turns object columns, lists among them, into Arrow strings if pandas 2 is installed.
    "dataframe.convert-string": False,
    # dask 2024.3 shuffles with p2p on any cluster; that cannot run inside merlin-core's sub-graphs.
    "dataframe.shuffle.method": "tasks",
}


def cudf_serves_merlin() -> bool:
    """Whether cudf and dask_cudf are installed, with the names that merlin-core 23.8 imports from them.

    cudf 24.10 dropped build_categorical_column, dask_cudf 24.12 from_dask_dataframe. Their sources are read, not
    imported: an import makes a CUDA context, which must not be there before dask-cuda starts its workers.
    """
    return _names("cudf", "core/column/__init__.py", "build_categorical_column") and _names(
        "dask_cudf", "__init__.py", "from_dask_dataframe"
    )


def _names(package: str, file: str, name: str) -> bool:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    path = Path(spec.origin).parent / file
    return path.is_file() and name in path.read_text(encoding="utf-8")


def _keep_merlin_on_pandas() -> None:
    """Merlin assumes that a GPU implies its cudf. Without it, its loader refuses to start (no cudf), or
    `import merlin.io` fails (cudf 24.10 and newer). This project computes with torch, cudf and cupy on that GPU all the
    same: it moves the batches itself.
    """
    if "merlin.core.has_gpu" not in sys.modules and not cudf_serves_merlin():
        answer = types.ModuleType("merlin.core.has_gpu", "Set by llmcfsr_merlin: Merlin's own parts use pandas.")
        setattr(answer, "HAS_GPU", False)  # noqa: B010 - a module's type has no such name
        sys.modules[answer.__name__] = answer


def _configure_dask() -> None:
    if fits(metadata.version("dask"), "<2024"):
        return
    loaded = sys.modules.get("dask.dataframe")
    if loaded is not None and getattr(loaded, "DASK_EXPR_ENABLED", False):
        raise MissingDependency(
            "dask.dataframe was imported with its query planner, which Merlin cannot use: set "
            "DASK_DATAFRAME__QUERY_PLANNING=False before Python starts"
        )
    import dask

    dask.config.set(_DASK)
    for key, value in _DASK.items():  # for the workers
        os.environ["DASK_" + key.upper().replace(".", "__").replace("-", "_")] = str(value)


def _restore_numpy_names() -> None:
    if not hasattr(np, "row_stack"):  # numpy 2.5 removed it; numba-cuda up to 0.30.4 looks it up if there is a GPU
        np.row_stack = np.vstack


_keep_merlin_on_pandas()
_configure_dask()
_restore_numpy_names()
