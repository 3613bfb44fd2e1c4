"""LLM-CFSR on NVIDIA Merlin: long-tail sequential recommendation, from raw logs to a Triton ensemble.

Public names are imported on first use, so that `import llmcfsr_merlin` needs no GPU, cudf, Triton or torch.
"""

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the caller configures logging

_PUBLIC = {
    "Config": "llmcfsr_merlin.config.load",
    "Dataset": "llmcfsr_merlin.dataset.dataset",
    "InputError": "llmcfsr_merlin.runtime.errors",
    "Recommender": "llmcfsr_merlin.recommender",
    "Client": "llmcfsr_merlin.serving.client",
    "run_stages": "llmcfsr_merlin.pipeline",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
