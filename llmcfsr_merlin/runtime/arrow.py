"""pyarrow before 14.0.1 runs code that a Parquet, Arrow or Feather file brings (CVE-2023-47248)."""

import importlib
from importlib import metadata

from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.runtime.supported import fits

_REPAIRED = ">=14.0.1"


def check_arrow() -> None:
    """Switch the hole of an old pyarrow off, by pyarrow-hotfix; MissingDependency where that is not installed."""
    try:
        found = metadata.version("pyarrow")
    except metadata.PackageNotFoundError:  # who needs it says so
        return
    if fits(found, _REPAIRED):
        return
    try:
        importlib.import_module("pyarrow_hotfix")  # importing it is all that it takes
    except ImportError as error:
        raise MissingDependency(
            f"pyarrow {found} runs code that a Parquet file brings (CVE-2023-47248): pip install pyarrow-hotfix, or "
            "pyarrow>=14.0.1"
        ) from error
