"""GPUs and whether torch and cudf can use them, memory and disk."""

import json
import os
import shutil
from pathlib import Path

from llmcfsr_merlin.runtime.doctor.check import PIP, Check, Execute, located
from llmcfsr_merlin.runtime.supported import supported

_TORCH = """
import json, torch
gpus = [(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
print(json.dumps([torch.__version__, torch.version.cuda, gpus, torch.cuda.get_arch_list()]))
"""


def check_torch(execute: Execute, python: tuple[int, ...]) -> list[Check]:
    code, line = execute(_TORCH)
    if code:
        pin = next(package.pin for package in supported(python) if package.name == "torch")
        return [Check("import torch", "error", line, f"{PIP} --force-reinstall 'torch=={pin}'")]
    version, cuda, gpus, architectures = json.loads(line)
    if not gpus:
        why = f"built for CUDA {cuda}, no GPU visible" if cuda else "CPU build"
        return [Check("GPU", "note", f"none (torch {version}: {why}): everything runs on the CPU")]
    checks = []
    for name, major, minor in gpus:
        found = f"{name}, compute capability {major}.{minor}, torch {version} for CUDA {cuda}"
        if not any(_covers(architecture, major, minor) for architecture in architectures):
            action = "this torch has no kernels for this GPU: install one built for a newer CUDA"
            if major >= 10:
                action += "; the Merlin 23.12 container ends at Hopper (docs/environments.md, Blackwell)"
            checks.append(Check("GPU", "warn", found, action))
        elif major >= 10:
            action = "Merlin's container ends at Hopper: use Python 3.12 or 3.13 (docs/environments.md, Blackwell)"
            checks.append(Check("GPU", "note" if python < (3, 12) else "ok", found, action))
        else:
            checks.append(Check("GPU", "ok", found, "training and encoding use it; serving with serve.device=gpu"))
    return checks


def _covers(architecture: str, major: int, minor: int) -> bool:
    """Whether code for e.g. sm_80 (same major, minor not above) or compute_80 (PTX: any newer GPU) runs on the GPU."""
    kind, _, number = architecture.partition("_")
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    if not digits.isdigit():
        return False
    built = divmod(int(digits), 10)
    return built <= (major, minor) if kind == "compute" else built[0] == major and built[1] <= minor


_CUDF = """
import llmcfsr_merlin.runtime.merlin_compat as compat, cudf, cupy
print(cudf.__version__ + ("" if compat.cudf_serves_merlin() else ", newer than Merlin: its own parts stay on pandas"))
"""


def check_cudf(execute: Execute) -> list[Check]:
    if located("cudf") is None:
        return [Check("cudf", "note", "not installed: preprocessing runs on pandas", "for GPUs: docs/environments.md")]
    code, line = execute(_CUDF)
    if code:
        return [Check("cudf", "warn", line, "use the Merlin container, or set cluster.kind=local (CPU)")]
    return [Check("cudf", "ok", line)]


def check_resources() -> list[Check]:
    gib = 1 << 30
    try:
        pages = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        memory = int(pages) * 1024 / gib
    except (OSError, IndexError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gib
    disk = shutil.disk_usage(".").free / gib
    checks = [
        Check("memory", "ok" if memory >= 4 else "warn", f"{memory:.1f} GiB free", "" if memory >= 4 else "free 4 GiB"),
        Check("disk", "ok" if disk >= 5 else "warn", f"{disk:.1f} GiB free here", "" if disk >= 5 else "free 5 GiB"),
    ]
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total / gib
        action = "" if shared >= 0.5 else "containers: docker run --shm-size=1g (Triton's python steps share memory)"
        checks.append(Check("shared memory", "warn" if action else "ok", f"{shared:.1f} GiB", action))
    return checks
