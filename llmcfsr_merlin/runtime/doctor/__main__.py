"""Run as `python -m llmcfsr_merlin.runtime.doctor`, and by `llmcfsr doctor`."""

import sys

from llmcfsr_merlin.runtime.doctor import doctor, report


def main() -> int:
    """Print the report; 0 if `llmcfsr demo` can run, else 1."""
    checks = doctor()
    print(report(checks))
    return int(any(check.status == "error" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
