"""Arrays on disk that are either whole or not there."""

from pathlib import Path

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` to `path` (.npy) under a temporary name and rename.

    np.save hides the reason of a failed write ("requested and written"); here a full disk is OSError ENOSPC.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    array = np.ascontiguousarray(array)
    with open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)
    temporary.replace(path)
