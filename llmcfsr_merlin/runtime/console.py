"""Tables on the terminal. Ids and titles are shown literally: rich would parse "[new]" and ":heart:" as markup."""

import io

from rich.console import Console
from rich.table import Table

_WIDTH = 160  # a pipe or log has no terminal width: 80 columns would wrap every row


def show(table: Table) -> None:
    """Print a table whose cells are strings (not markup) or rich Text."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def rendered(table: Table) -> str:
    """The table's lines, for a log."""
    console = Console(file=io.StringIO(), width=_WIDTH, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))
