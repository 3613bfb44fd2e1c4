"""Chooses the adapter for the Merlin part of `prepare`: NVTabular's if it is installed, else the one without it.

Both have the same functions, and tests compare what they write:

    categorify(ids, save)                         encoded ids of the items; NVTabular's also saves the workflow
    write_split_schema(items, max_length, path)   the Merlin schema of the splits
    longest_row(path)                             the most items that a row has, by such a schema
"""

import importlib.util
from importlib import import_module
from types import ModuleType

from llmcfsr_merlin.runtime.errors import MissingDependency


def adapter() -> ModuleType:
    """The adapter module; MissingDependency if NVTabular is installed but cannot be imported."""
    name = "nvtabular_adapter" if importlib.util.find_spec("nvtabular") else "merlin_free"
    try:
        return import_module(f"llmcfsr_merlin.dataset.prepare.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"NVTabular is installed without {error.name}, which it needs: install that (`llmcfsr doctor` says how), "
            "or uninstall nvtabular, and prepare runs without Merlin"
        ) from error
