"""Classes and functions that live outside this package, named `module:Name`.

A recipe is trusted like code: what it names is imported. A model folder is not: inside `only_allowed`, which every
loading of a saved model is, a name is imported if the caller allows it (an argument, or the environment variable
LLMCFSR_EXTENSIONS, comma-separated names), or if an installed package registers it as an entry point of the
group `llmcfsr_merlin.extensions`.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module, metadata
from typing import Any

from llmcfsr_merlin.runtime.errors import InputError

GROUP = "llmcfsr_merlin.extensions"
VARIABLE = "LLMCFSR_EXTENSIONS"
_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=None)  # None: everything


def load_class(name: str) -> Any:
    """Import `package.module:Name`; InputError if it is missing, or not allowed if a saved model names it."""
    module, separator, attribute = name.partition(":")
    if not (separator and module and attribute):
        raise InputError(f"expected module:Name, found {name!r}")
    allowed = _allowed.get()
    if allowed is not None and name not in allowed and name not in _registered():
        raise InputError(
            f"the saved model names {name!r}, which is not part of this package: if you trust it, `export "
            f"{VARIABLE}={name}` or pass allow=[{name!r}]"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{name} cannot be imported ({error}): is its package installed, or its folder in PYTHONPATH?"
        ) from error


@contextmanager
def only_allowed(names: Iterable[str]) -> Iterator[None]:
    """Within this context, load_class imports only `names` and registered extensions."""
    token = _allowed.set(frozenset(names))
    try:
        yield
    finally:
        _allowed.reset(token)


def _registered() -> set[str]:
    named = os.environ.get(VARIABLE, "").split(",")
    return {name.strip() for name in named} | {entry.value for entry in metadata.entry_points(group=GROUP)}
