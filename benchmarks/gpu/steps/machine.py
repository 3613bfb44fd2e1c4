"""What the machine is and can do: device, driver, versions, bf16 matrix products, memory."""

import os
import platform
import subprocess
import sys
from importlib import metadata

import psutil
import torch

from benchmarks.gpu.common import CUDA, DEVICE, median

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "transformers", "peft", "cupy-cuda13x", "cudf-cu13", "nvtabular")
# Dense bf16 TFLOP/s of the data sheets (SXM), by a word of the device's name.
DATA_SHEETS = {"H100 80GB HBM3": 989.4, "H200": 989.4, "A100": 311.9}


def run(record, small: bool) -> None:
    record("facts", facts())
    record.part("bf16", lambda: matrix_product(512 if small else 8192))
    record.part("copy", lambda: copy(1 << (20 if small else 30)))


def facts() -> dict:
    found = {
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "device_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if CUDA else None,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "data_sheet_bf16_tflops": next((value for word, value in DATA_SHEETS.items() if word in _name()), None),
    }
    return found | {name: _version(name) for name in PACKAGES}


def matrix_product(n: int) -> dict:
    """TFLOP/s of a bf16 product of random square matrices."""
    left, right = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return {"tflops": round(2 * n**3 / median(lambda: left @ right, 20, 5) / 1e12, 1), "n": n}


def copy(count: int) -> dict:
    """TB/s of a copy on the device, read and written bytes counted."""
    source = torch.empty(count, device=DEVICE)
    target = torch.empty_like(source)
    return {"tb_s": round(2 * 4 * count / median(lambda: target.copy_(source)) / 1e12, 3)}


def _name() -> str:
    return torch.cuda.get_device_name() if CUDA else ""


def _driver() -> str | None:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
