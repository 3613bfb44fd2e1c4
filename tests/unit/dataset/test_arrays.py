"""Arrays on disk, read by several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmcfsr_merlin.dataset.prepare.arrays import load_array, save_array


@pytest.mark.parametrize("array", [np.arange(6), np.zeros(0, np.int8), np.arange(6, dtype=np.int32).reshape(3, 2)])
def test_what_was_saved_is_loaded(tmp_path, array):
    save_array(tmp_path / "a.npy", array)
    found = load_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy"))


def test_threads_read_side_by_side(tmp_path):
    """np.load does not survive this on Python before 3.11.5."""
    save_array(tmp_path / "a.npy", np.arange(3))
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: int(load_array(tmp_path / "a.npy").sum()), range(2000)))
    assert set(sums) == {3}
