"""Loops as machine code, kept beside the module's bytecode or in the user's cache: compiling takes seconds."""

from collections.abc import Callable
from typing import Any

from numba import njit

Loop = Callable[..., Any]


def loop(signature: str, **options: Any) -> Callable[[Loop], Loop]:
    """numba.njit for one signature, without the GIL; where nothing can be written, it is compiled at every import."""

    def compiled(function: Loop) -> Loop:
        try:
            return njit(signature, cache=True, nogil=True, **options)(function)
        except RuntimeError:  # Numba finds no folder to write to
            return njit(signature, nogil=True, **options)(function)

    return compiled
