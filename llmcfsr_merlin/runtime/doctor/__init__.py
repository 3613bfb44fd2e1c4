"""`llmcfsr doctor`: reports what is installed, which versions conflict, and the command that fixes it.

It needs only Python to start: packages that may be missing, broken or crash on import are imported in separate
processes. Run it as `python -m llmcfsr_merlin.runtime.doctor` if the command line itself does not start.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from llmcfsr_merlin.runtime.doctor.check import PIP, Check, Execute, Version, installed, run_python
from llmcfsr_merlin.runtime.doctor.hardware import check_cudf, check_resources, check_torch
from llmcfsr_merlin.runtime.doctor.python_packages import (
    check_cves,
    check_encoder,
    check_import,
    check_merlin,
    check_pip,
    check_pyarrow,
    check_python,
    check_versions,
)
from llmcfsr_merlin.runtime.doctor.triton_server import check_triton, shared_python

__all__ = ["Check", "doctor", "report", "shared_python"]


def doctor(
    version: Version = installed,
    execute: Execute = run_python,
    python: tuple[int, int, int] = sys.version_info[:3],
) -> list[Check]:
    """All checks, in the order of the report. `version` and `execute` query the machine."""
    if version("packaging") is None:  # compares versions; every installation has it
        return [check_python(python), Check("packaging", "error", "not installed", f"make setup, or {PIP} packaging")]
    slow = [lambda: check_torch(execute, python), lambda: check_cudf(execute)]
    if version("transformers4rec"):
        slow.insert(0, lambda: check_import("transformers4rec.torch", "training.t4rec_compat", execute))
    if version("nvtabular"):
        slow.insert(0, lambda: check_import("nvtabular", "runtime.merlin_compat", execute))
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(check) for check in slow]
        checks = [
            check_python(python),
            *check_versions(version, python),
            *check_merlin(version, python),
            check_pip(version),
        ]
        for future in pending:
            checks += future.result()
    return [
        *checks,
        check_encoder(),
        *check_triton(version, python),
        *check_resources(),
        *check_pyarrow(version),
        *check_cves(version),
    ]


def report(checks: list[Check]) -> str:
    """The checks as a table, and a summary line."""
    errors = sum(check.status == "error" for check in checks)
    verdict = f"{errors} problem(s): fix them from the top" if errors else "`llmcfsr demo` can run here"
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        lines = [f"{check.status:5} {check.name}: {check.found}  {check.action}".rstrip() for check in checks]
        return "\n".join([*lines, verdict])
    table = Table(expand=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")  # a path is of use only whole
    colour = {"ok": "green", "note": "cyan", "warn": "yellow", "error": "red"}
    for check in checks:
        cells = (cell.replace("[", r"\[") for cell in (check.name, check.found, check.action))
        table.add_row(f"[{colour[check.status]}]{check.status}[/]", *cells)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
        console.print(verdict, markup=False)
    return capture.get().rstrip()
