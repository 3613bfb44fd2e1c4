"""Tables on the terminal. Ids and titles are shown as they are: rich would read "[new]" and ":heart:" as its markup."""

from rich.console import Console
from rich.table import Table


def show(table: Table, *, stderr: bool = False) -> None:
    """Print a table whose cells are texts (not markup) or rich's Text."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and not stderr:
        console.width = 160  # a pipe or a log has no width of its own: 80 columns would break every row
    console.print(table)
