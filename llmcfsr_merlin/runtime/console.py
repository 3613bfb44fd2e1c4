"""Tables on the terminal. Ids and titles are shown as they are: rich would read "[new]" and ":heart:" as its markup."""

import io

from rich.console import Console
from rich.table import Table

_WIDTH = 160  # a pipe or a log has no width of its own: 80 columns would break every row


def show(table: Table) -> None:
    """Print a table whose cells are texts (not markup) or rich's Text."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def rendered(table: Table) -> str:
    """The lines of such a table, for a log."""
    console = Console(file=io.StringIO(), width=_WIDTH, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))
