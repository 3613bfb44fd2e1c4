"""`llmcfsr init`: a recipe drafted from a log."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("log", help="file, folder of Parquet or quoted pattern: CSV, TSV, JSON lines, Parquet; .gz too")
    parser.add_argument("items", nargs="?", help="item attributes, in one of the same forms")
    parser.add_argument("--out", type=Path, default=Path("shop.yaml"), help="recipe to write (default shop.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="fix a setting")


def _run(arguments: Namespace) -> None:
    """Look at the files and write a commented recipe; nothing is asked and nothing overwritten."""
    from rich.table import Table

    from llmcfsr_merlin.planning.drafts import draft_recipe
    from llmcfsr_merlin.runtime.console import show
    from llmcfsr_merlin.runtime.errors import InputError

    out: Path = arguments.out
    refused = InputError(f"expected no file at {out}, found one: name another with --out, or remove it")
    if out.exists():
        raise refused
    draft = draft_recipe(out.stem, arguments.log, arguments.items, arguments.set)
    table = Table(title=f"{out}: decided from the files", title_justify="left", show_header=False)
    for what, how in draft.decided:
        table.add_row(what, how)
    show(table)
    for line in draft.open:
        print(f"left to choose in {out}: {line}")
    try:
        with open(out, "x", encoding="utf-8") as stream:
            stream.write(draft.text)
    except FileExistsError:
        raise refused from None
    print(f"wrote {out}; next: llmcfsr check {out}")


VERB = Verb("init", "inspect a log and write a commented recipe for it", _arguments, _run)
