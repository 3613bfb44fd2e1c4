"""A line of the doctor's report, and how the machine is asked without importing what may be broken."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

Version: TypeAlias = Callable[[str], str | None]
"""The version of an installed distribution, or None."""
Execute: TypeAlias = Callable[[str], tuple[int, str]]
"""Runs code elsewhere: see run_python."""
NO_ANSWER = "no answer within 180 seconds"

PIP = f"{sys.executable} -m pip install"


@dataclass(frozen=True)
class Check:
    """One line of the report. `error`: `llmcfsr demo` cannot run here; `action` says what to do."""

    name: str
    status: Literal["ok", "note", "warn", "error"]
    found: str
    action: str = ""


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run_python(code: str) -> tuple[int, str]:
    """Run code in a new interpreter; returns the exit code and the last line printed (of stderr if it failed)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return 1, NO_ANSWER
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode, lines[-1][:300] if lines else f"ended with code {done.returncode}"


def located(module: str) -> Path | None:
    """Where a module would be imported from, or None; it is not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None
