"""Merlin starts beside newer releases and on GPU machines without its cudf; in its own container nothing is changed.

GPUs and cudf are pretended, in processes of their own: no proof that a GPU computes the same.
"""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMPAT = ("llmcfsr_merlin.runtime.merlin_compat", "llmcfsr_merlin.training.t4rec_compat")
A_GPU = "from dask.distributed.diagnostics import nvml\nnvml.device_get_count = lambda: 1\n"
STATE = "from merlin.core.compat import HAS_GPU, cudf\nimport merlin.io\nprint(HAS_GPU, cudf is not None)\n"
BATCH = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch
from llmcfsr_merlin.training import t4rec_trainer
from llmcfsr_merlin.dataset.names import ITEM
torch.cuda.mem_get_info = lambda device: (0, 0)  # as if another process had it: batches stay on the CPU
pq.write_table(pa.table({ITEM: pa.array([[3, 4], [5], [6, 7, 8]], pa.list_(pa.int64()))}), sys.argv[1])
loader = t4rec_trainer.data_loader([sys.argv[1]], None, 2, False, torch.device("cuda"))
print([batch[ITEM].tolist() for batch, _ in loader], [count for _, count in loader])
"""
FOUND = "[[[3, 4, 0], [5, 0, 0]], [[6, 7, 8]]] [3, 3]"


NEEDED = pytest.mark.skipif(not importlib.util.find_spec("nvtabular"), reason="needs Merlin, which is not installed")


def python(code: str, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess:
    code = f"import sys\nsys.path[:0] = [{str(path)!r}, {str(ROOT)!r}]\n{code}"
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def fake_cudf(folder: Path, column: str, dask_cudf: str) -> Path:
    """Packages that import, with what merlin-core looks for or without it."""
    files = {
        "cudf/__init__.py": "class DataFrame: pass\nclass Series: pass\n__version__ = '0'\n",
        "cudf/core/__init__.py": "",
        "cudf/core/column/__init__.py": column,
        "dask_cudf/__init__.py": f"class DataFrame: pass\n{dask_cudf}",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@NEEDED
def test_a_gpu_without_cudf_is_left_to_torch(tmp_path):
    merlin_alone = python(A_GPU + STATE)
    assert merlin_alone.stdout.split() == ["True", "False"], merlin_alone.stderr  # what the rest would meet
    ours = python(A_GPU + f"import {COMPAT[0]}\n" + STATE)
    assert ours.stdout.split() == ["False", "False"], ours.stderr
    done = python(A_GPU + BATCH, str(tmp_path / "x.parquet"))
    assert done.stdout.strip() == FOUND, done.stderr


@NEEDED
def test_merlin_imported_first_does_not_stop_the_loader(tmp_path):
    done = python(A_GPU + "import merlin.core.compat\n" + BATCH, str(tmp_path / "x.parquet"))
    assert done.stdout.strip() == FOUND, done.stderr


@NEEDED
def test_a_cudf_that_merlin_cannot_use_is_kept_from_it(tmp_path):
    fakes = fake_cudf(tmp_path, "class ColumnBase: pass\n", "")
    assert "'cudf' has no" in python(A_GPU + STATE, path=fakes).stderr  # what the rest would meet
    done = python(A_GPU + f"import {COMPAT[0]}\n{STATE}import cudf; print(cudf.__version__)", path=fakes)
    assert done.stdout.split() == ["False", "False", "0"], done.stderr


OF_23 = "from cudf.core.column.column import (\n    build_categorical_column,\n)\n"


@pytest.mark.parametrize(
    ("column", "dask_cudf", "serves"),
    [
        (OF_23, "from_dask_dataframe = 1\n", True),
        (OF_23, "", False),
        ("class ColumnBase: pass\n", "from_dask_dataframe = 1\n", False),
    ],
)
def test_in_the_container_nothing_is_preset(tmp_path, column, dask_cudf, serves):
    """Decided by the sources, without importing cudf, which would make a CUDA context."""
    fakes = fake_cudf(tmp_path, column, dask_cudf)
    code = f"import {COMPAT[0]} as compat\nprint(compat.cudf_serves_merlin(), "
    code += "'merlin.core.has_gpu' in sys.modules, 'cudf' in sys.modules)"
    done = python(code, path=fakes)
    assert done.stdout.split() == [str(serves), str(not serves), "False"], done.stderr


def test_dask_is_set_for_this_process_and_its_workers():
    code = f"import os, dask\nimport {COMPAT[0]}\nimport dask.dataframe\nnew = int(dask.__version__[:4]) >= 2024\n"
    code += "print(new, dask.config.get('dataframe.query-planning', None))\n"
    code += "print(dask.config.get('dataframe.convert-string', None))\n"
    code += "print(os.environ.get('DASK_DATAFRAME__QUERY_PLANNING'))"
    done = python(code)
    assert done.returncode == 0, done.stderr
    new, planning, strings, inherited = done.stdout.split()
    if new == "True":
        assert (planning, strings, inherited) == ("False", "False", "False")
    else:
        assert (planning, inherited) == ("None", "None")


def test_every_module_that_imports_merlin_prepares_it_first():
    """By reading: the first import of such a module is that of the shims."""
    wanted = {"merlin", "nvtabular", "transformers4rec"}
    found = []
    for path in sorted((ROOT / "llmcfsr_merlin").rglob("*.py")):
        names = []
        for node in ast.parse(path.read_text()).body:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import):
                    names += [alias.name for alias in inner.names]
                elif isinstance(inner, ast.ImportFrom):
                    names.append(inner.module)
        tops = {name.split(".")[0] for name in names}
        if tops & wanted:
            found.append(path.name)
            needed = COMPAT[1:] if "transformers4rec" in tops else COMPAT
            assert names[0] in needed, f"{path}: import {needed[-1]} first"
    assert {"nvtabular_adapter.py", "t4rec.py", "t4rec_trainer.py"} <= set(found)
