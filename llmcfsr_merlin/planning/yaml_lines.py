"""Lines of a YAML file with comments; values are written by PyYAML, so that any name can stand there."""

import textwrap
from typing import Any

import yaml

_WIDTH = 118


class Lines:
    """A recipe under construction."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def section(self, name: str) -> None:
        self._lines += ["", f"{name}:"]

    def blank(self) -> None:
        self._lines.append("")

    def put(self, key: str, value: Any, why: str | None = None, indent: int = 0, *, null: bool = False) -> None:
        """`key: value`, the reason in a comment above; a value of None begins a mapping, unless `null`."""
        if why:
            self.comment(why, indent)
        said = "" if value is None and not null else f" {_flow(value)}"
        self._lines.append(f"{'  ' * indent}{_scalar(key)}:{said}")

    def off(self, key: str, value: Any, why: str | None, indent: int) -> None:
        """The same as a commented line, its comment behind it."""
        text = f"{'  ' * indent}# {key}:" + ("" if value is None else f" {_flow(value)}")
        self._lines.append(text + (f"  # {' '.join(why.split())}" if why else ""))

    def comment(self, text: str, indent: int = 0) -> None:
        space = "  " * indent
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        for line in textwrap.wrap(text, _WIDTH - len(space) - 2, break_on_hyphens=False, break_long_words=False):
            self._lines.append(f"{space}# {line}")


def _scalar(value: str) -> str:
    return value if value.replace("_", "").replace(".", "").isalnum() else _flow(value)


def _flow(value: Any) -> str:
    text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]
