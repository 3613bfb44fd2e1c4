"""`llmcfsr check-served`: compare a server with the library, as a release gate."""

import json
import sys
from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.recipe_arguments import add_run
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--url", required=True, help="server, e.g. grpc://localhost:8001")
    parser.add_argument("--users", type=int, help="number of users, drawn at random (default: all)")
    parser.add_argument("-k", type=int, default=10, help="length of the compared lists (default 10)")


def _run(arguments: Namespace) -> int:
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.serving.parity import check_served

    chosen = examples.pick(arguments.run, arguments.users) if arguments.users else examples.sequences(arguments.run)
    histories = [sequence[:-1] for sequence in chosen.values()]
    shortlist = Config.recorded(arguments.run).serve.shortlist
    parity = check_served(arguments.run, arguments.url, histories, arguments.k, shortlist=shortlist)
    if not parity.passed:
        print(parity.first_difference, file=sys.stderr)
    print(json.dumps(parity.as_dict()))
    return 0 if parity.passed else 1


VERB = Verb("check-served", "compare a server's recommendations with the library's (release gate)", _arguments, _run)
