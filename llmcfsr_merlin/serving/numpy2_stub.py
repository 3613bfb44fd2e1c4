"""nvidia-pytriton 0.7.0's python backend with numpy 2, for which it was not built.

Its stub reads the item size from offset 32 of a dtype, where numpy 1 keeps it (pybind11 before 2.12); numpy 2
keeps it at 40, and flags at 32, which are 0 for numbers: tensors would be empty. The stub reads it in five places.
For each server, a copy that reads offset 40 is written to its own folder, from the two stubs in which those places are
known; the installation is not modified. A Triton container (Dockerfile, target `serve`) needs none of this.
"""

import hashlib
from importlib import metadata
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.supported import fits

_KNOWN = {  # sha256 of the stubs for Python 3.12 and 3.13
    "41a7758c6f44520b846e90a5bf8b063f99aee01698c3e32113ce352fe8369921",
    "7b701b4b4bc01ca7af0350eaffa4f2aed92f02b465b3494a265059e4d3ca6cf8",
}
# Offsets of the five displacements: four movslq 32(%rax),%rax in PbTensor, one mov 32(%rax),%eax in array.
_PLACES = (0xA6C74, 0xA6E90, 0xA7664, 0xA78A9, 0xACA2B)
_NUMPY_1, _NUMPY_2 = 32, 40


def numpy_is_misread() -> bool:
    """Whether nvidia-pytriton's stubs, as they are, would misread the installed numpy."""
    return fits(metadata.version("numpy"), ">=2")


def write_for_numpy_2(stub: Path, target: Path) -> None:
    """Write a copy of `stub` that reads numpy 2's dtypes; InputError for an unknown stub."""
    code = bytearray(stub.read_bytes())
    if hashlib.sha256(code).hexdigest() not in _KNOWN or any(code[place] != _NUMPY_1 for place in _PLACES):
        raise InputError(
            f"the python backend of nvidia-pytriton ({stub}) was built for numpy 1, found numpy "
            f"{metadata.version('numpy')}: pip install --no-deps nvidia-pytriton==0.7.0 (Python 3.12 or 3.13), or "
            "serve in a Triton container (docs/environments.md)"
        )
    for place in _PLACES:
        code[place] = _NUMPY_2
    target.write_bytes(code)
    target.chmod(0o755)
