"""`llmcfsr recommend`: recommend items for a history."""

import json
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmcfsr_merlin.cli.verb import Verb
from llmcfsr_merlin.runtime.errors import InputError


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "items", nargs="*", metavar="ITEM", help="raw item ids, oldest first; ids may start with a dash"
    )
    parser.add_argument("--run", type=Path, help="run directory; with --url only used for titles and users")
    parser.add_argument("--url", help="server, e.g. grpc://localhost:8001 or http://localhost:8000")
    parser.add_argument("--user", metavar="ID", help="use the history of this user of --run")
    parser.add_argument("-k", type=int, default=10, help="number of recommendations (default 10)")
    parser.add_argument(
        "--exclude-seen", action=BooleanOptionalAction,
        help="leave out the items of the history, or keep them (default: as the model was trained)",
    )  # fmt: skip
    for name, text in (("allow", "recommend only these items"), ("deny", "never recommend these items")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="ID", help=f"{text}; repeat it for more ids, or use a,b"
        )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")


def _run(arguments: Namespace) -> None:
    """Recommend from a server if --url is given, else from the run."""
    from llmcfsr_merlin.cli.results import show_user
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.dataset.names import ITEM
    from llmcfsr_merlin.dataset.raw.fields.ids import clean_id

    if arguments.user is not None and not arguments.run:
        raise InputError("--user needs --run, the run directory that holds the user's history")
    if (arguments.user is None) == (not arguments.items):
        raise InputError("expected either item ids or --user, found " + ("both" if arguments.items else "neither"))
    history = [clean_id(raw) or raw for raw in arguments.items]
    if arguments.user is not None:
        user = clean_id(arguments.user) or ""
        history = examples.sequences(arguments.run, [user])[user]
    options = {"exclude_seen": arguments.exclude_seen}
    if arguments.url:
        from llmcfsr_merlin.serving import Client

        with Client(arguments.url) as client:
            filters = _filters(arguments, lambda ids: client.answer([[raw] for raw in ids], 1).unknown == 0)
            answers = client.answer([history], arguments.k, **options, **filters)
    elif arguments.run:
        from llmcfsr_merlin.recommender import Recommender

        recommender = Recommender.load(arguments.run)
        filters = _filters(arguments, lambda ids: recommender.encode([[raw] for raw in ids]).unknown == 0)
        answers = recommender.answer([history], arguments.k, **options, **filters)
    else:
        raise InputError("expected --run DIRECTORY or --url SERVER, found neither")
    if answers.unknown[0] and (dashed := [raw for raw in arguments.items if raw.startswith("-")]):
        print(f"taken as item ids, not as options: {' '.join(dashed)}", file=sys.stderr)
    from llmcfsr_merlin.recommender import table

    found = table(answers)
    if arguments.json:
        answer = found[[ITEM, "score"]].to_dict("records")
        print(json.dumps({"items": answer, "unknown": int(answers.unknown[0]), "fallback": bool(answers.fallback[0])}))
        return
    show_user(arguments.run, arguments.user, history, found)
    if answers.fallback[0]:
        print("no item of the history is known: showing the most popular items")
    elif answers.unknown[0]:
        print(f"{answers.unknown[0]} id(s) of the history are unknown and were ignored")


def _filters(arguments: Namespace, known: Callable[[list[str]], Sequence[bool]]) -> dict[str, Any]:
    """--allow and --deny as lists. `a,b` is one id if the model has it, else two. known: filters ids that it has."""
    filters: dict[str, Any] = {}
    for name in ("allow", "deny"):
        if not (given := getattr(arguments, name)):
            continue
        ids: list[str] = []
        for text, whole in zip(given, known(given)):
            ids += [text] if whole else text.split(",")
        unknown = [raw for raw, there in zip(ids, known(ids)) if not there]
        if name == "allow" and len(unknown) == len(ids):
            raise InputError(f"--allow: expected items that the model knows, found none, first {unknown[0]!r}")
        if unknown:
            print(f"--{name}: {len(unknown)} id(s) are unknown, first {unknown[0]!r}", file=sys.stderr)
        filters[name] = ids
    return filters


VERB = Verb("recommend", "recommend items for a history, from a run or a server", _arguments, _run, item_ids=True)
