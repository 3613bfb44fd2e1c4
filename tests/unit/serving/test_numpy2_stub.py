"""The copy of nvidia-pytriton's stub for numpy 2 differs from it in five bytes; no other stub is touched.

tests/integration/test_serving.py serves by it where numpy 2 is installed.
"""

import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import numpy2_stub


def test_an_unknown_stub_is_refused(tmp_path):
    (tmp_path / "stub").write_bytes(b"another build")
    with pytest.raises(InputError, match=r"built for numpy 1, found numpy \d.*nvidia-pytriton==0\.7\.0"):
        numpy2_stub.write_for_numpy_2(tmp_path / "stub", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_five_distances_change(tmp_path, python):
    package = importlib.util.find_spec("pytriton")
    if package is None or metadata.version("nvidia-pytriton") != "0.7.0":
        pytest.skip("needs nvidia-pytriton 0.7.0, that of Python 3.12 and newer")
    stubs = Path(package.submodule_search_locations[0]) / "tritonserver" / "python_backend_stubs"
    stub = stubs / python / "triton_python_backend_stub"
    numpy2_stub.write_for_numpy_2(stub, tmp_path / "copy")
    before, after = stub.read_bytes(), (tmp_path / "copy").read_bytes()
    changed = {(a, b) for a, b in zip(before, after, strict=True) if a != b}
    assert changed == {(32, 40)} and sum(a != b for a, b in zip(before, after)) == 5
    assert (tmp_path / "copy").stat().st_mode & 0o111
