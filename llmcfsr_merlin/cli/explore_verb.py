"""`llmcfsr explore`: a local page on which runs, or a running server, are tried out."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN",
        help="run directories, or models in them (runs/demo/baselines/sasrec); the first has the items and test users",
    )  # fmt: skip
    parser.add_argument("--url", help="a running gateway to show as well, or on its own, e.g. http://localhost:8000")
    parser.add_argument("--api-key", type=Path, metavar="FILE", help="file that holds a key for the gateway")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: loopback only); the page has no login",
    )
    parser.add_argument("--page-port", type=int, default=8050, help="default 8050; 0 takes a free one")


def _run(arguments: Namespace) -> None:
    from llmcfsr_merlin.explore.page_server import bound, check_installed, serve

    check_installed()
    taken = bound(arguments.host, arguments.page_port)

    from llmcfsr_merlin.explore.explorer import Explorer

    explorer = Explorer(arguments.runs, arguments.url, arguments.api_key)
    if arguments.host not in ("127.0.0.1", "localhost"):
        print(f"anybody who reaches {arguments.host} sees the users and items of these runs", file=sys.stderr)
    serve(explorer, taken, arguments.host, lambda address: print(f"explore: {address}", flush=True))


VERB = Verb("explore", "try out runs on a local web page: items, users, reasons, score weights", _arguments, _run)
