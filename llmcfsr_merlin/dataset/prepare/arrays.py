"""Arrays on disk that are either complete or absent."""

from pathlib import Path

import numpy as np

from llmcfsr_merlin.runtime.files import whole
from llmcfsr_merlin.runtime.literals import PARSER


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` to `path` (.npy) under a temporary name and rename.

    np.save hides the reason of a failed write ("requested and written"); here a full disk is OSError ENOSPC.
    """
    array = np.ascontiguousarray(array)
    with whole(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def load_array(path: Path) -> np.ndarray:
    """Read an array of save_array; thread-safe, unlike np.load."""
    with open(path, "rb") as stream:
        with PARSER:  # a header is a Python literal
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        return np.fromfile(stream, dtype, int(np.prod(shape))).reshape(shape)
