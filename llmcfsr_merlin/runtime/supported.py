"""Tested versions of our dependencies, and their known vulnerabilities."""

from typing import NamedTuple


class Supported(NamedTuple):
    """Bounds of the tested versions; `pin`: version in the constraints, `why`: reason of the bound.

    alone: installed without its dependencies, which require other versions.
    only_for: the package that needs this bound.
    """

    name: str
    bounds: str
    pin: str
    why: str = ""
    alone: bool = False
    only_for: str = ""


# Everything runs without these; docs/environments.md says what they add.
MERLIN = ("nvtabular", "merlin-core", "merlin-dataloader", "merlin-models", "transformers4rec")

# A test compares the pins with those of constraints.txt and constraints-current.txt.
# Below Python 3.12. The lower bounds are those of the Merlin container 23.12.
_DEFAULT = (
    Supported("nvtabular", ">=23.8,<23.9", "23.8.0"),
    Supported("merlin-core", ">=23.8,<23.9", "23.8.0"),
    Supported("merlin-dataloader", ">=23.8,<23.9", "23.8.0"),
    Supported("transformers4rec", ">=23.12,<23.13", "23.12.0"),
    Supported("transformers", ">=4.27,<4.31", "4.30.2", "Transformers4Rec 23.12 refuses newer ones"),
    Supported("torch", ">=2.0,<3", "2.13.0"),
    Supported("pandas", ">=1.5,<2", "1.5.3", "merlin-core 23.8 is written for pandas 1"),
    Supported("numpy", ">=1.22,<2", "1.26.4", "pandas 1.5 is built against numpy 1"),
    Supported("dask", ">=2023.1,<2023.10", "2023.9.2", "newer ones need pandas 2 and query planning"),
    Supported("distributed", ">=2023.1,<2023.10", "2023.9.2", "must match dask's release"),
    Supported("dask-cuda", ">=22.12,<23.12", "23.10.0", "newer ones pull a newer dask"),
    Supported("pyarrow", ">=8,<16", "14.0.2", "newer ones need numpy 2"),
    Supported("setuptools", ">=40,<81", "80.10.2", "81 removed pkg_resources", only_for="nvtabular"),
    Supported("pydantic", ">=2.7,<3", "2.14.3"),
    Supported("safetensors", ">=0.3,<1", "0.8.0"),
)
# From Python 3.12 on: what runtime/merlin_compat.py and training/t4rec_compat.py were written for.
_CURRENT = (
    Supported("nvtabular", ">=23.8,<23.9", "23.8.0", alone=True),
    Supported("merlin-core", ">=23.8,<23.9", "23.8.0", alone=True),
    Supported("merlin-dataloader", ">=23.8,<23.9", "23.8.0", alone=True),
    Supported("merlin-models", ">=23.12,<23.13", "23.12.0", alone=True),
    Supported("transformers4rec", ">=23.12,<23.13", "23.12.0", alone=True),
    Supported("transformers", ">=5.17,<6", "5.17.0", "its Trainer changes with every release"),
    Supported("torch", ">=2.11,<3", "2.11.0"),
    Supported("pandas", ">=2.3,<4", "3.1.1"),
    Supported("numpy", ">=2.1,<3", "2.5.2"),
    Supported("dask", ">=2024.11.2,<2024.11.3", "2024.11.2", "merlin-core cannot take newer ones' frames apart"),
    Supported("distributed", ">=2024.11.2,<2024.11.3", "2024.11.2", "must match dask's release"),
    Supported("pyarrow", ">=19,<27", "26.0.1"),
    Supported("setuptools", ">=40,<81", "80.10.2", "81 removed pkg_resources", only_for="nvtabular"),
    Supported("pydantic", ">=2.5,<3", "2.14.4"),
    Supported("safetensors", ">=0.3,<1", "0.8.0"),
)


def supported(python: tuple[int, ...]) -> tuple[Supported, ...]:
    """The tested versions for a version of Python."""
    return _CURRENT if python >= (3, 12) else _DEFAULT


# Known vulnerabilities of published versions. Our code makes none of these calls (tests/unit/test_security.py).
CVES = (
    ("transformers4rec", "24", "CVE-2025-23298, CVE-2025-33213", "its checkpoint loading runs pickles"),
    ("nvtabular", "24", "CVE-2025-33214", "Workflow.load runs pickles"),
    ("transformers", "4.36", "CVE-2023-6730, CVE-2023-7018", "some loaders run pickles"),
)

# Known vulnerabilities of tritonserver: first fixed version, its container, and what is affected. Those of 2026 are
# from from others' accounts of NVIDIA's bulletin 5828 (May 2026: releases before 26.03), which could not be read
# itself.
TRITON_CVES = (
    ("2.59.1", "25.07", "CVE-2025-23310, CVE-2025-23311, CVE-2025-23319, CVE-2025-23320, CVE-2025-23334",
     "chunked bodies and shared memory: crash or remote code execution"),
    ("2.62", "25.10", "CVE-2025-33201", "large requests crash it"),
    ("2.67", "26.03", "CVE-2026-24206, CVE-2026-24207, CVE-2026-24208, CVE-2026-24209, CVE-2026-24210, CVE-2026-24215",
     "authentication bypass, path traversal, crashes by requests"),
)  # fmt: skip
PYTRITON_SERVER = "2.51.0"  # in nvidia-pytriton 0.5.14 to 0.7.0


def fits(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as ">=23.8,<23.9", by its release alone.

    A container's 2.1.0a0+4136153 counts as 2.1.0, which it became, and 2.0.0rc1 as 2.0.0.
    """
    from packaging.specifiers import SpecifierSet  # not at import: the doctor says that it is missing
    from packaging.version import Version

    return Version(Version(version).base_version) in SpecifierSet(bounds)
