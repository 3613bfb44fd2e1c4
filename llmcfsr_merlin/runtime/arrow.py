"""Closes CVE-2023-47248: pyarrow before 14.0.1 runs code embedded in Parquet, Arrow or Feather files."""

import importlib
from importlib import metadata

from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.runtime.supported import fits

_REPAIRED = ">=14.0.1"


def check_arrow() -> None:
    """Apply pyarrow-hotfix to an old pyarrow; MissingDependency if it is not installed."""
    try:
        found = metadata.version("pyarrow")
    except metadata.PackageNotFoundError:  # reported by whoever needs it
        return
    if fits(found, _REPAIRED):
        return
    try:
        importlib.import_module("pyarrow_hotfix")  # importing it applies the fix
    except ImportError as error:
        raise MissingDependency(
            f"pyarrow {found} runs code that a Parquet file brings (CVE-2023-47248): pip install pyarrow-hotfix, or "
            "pyarrow>=14.0.1"
        ) from error
