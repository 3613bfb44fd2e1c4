"""`llmcfsr demo`: the whole pipeline on generated data."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="run directory (default runs/demo)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")


def _run(arguments: Namespace) -> int:
    """Run the demo recipe, start a server, show three users and check every user against the library."""
    from llmcfsr_merlin.cli.recipe_arguments import directory_of
    from llmcfsr_merlin.cli.results import show_results, show_stages, show_user
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.dataset.names import MODEL_REPOSITORY
    from llmcfsr_merlin.pipeline import run_stages
    from llmcfsr_merlin.runtime.layout import BASELINES
    from llmcfsr_merlin.serving import Client, Server
    from llmcfsr_merlin.serving.parity import check_served

    config = Config.load("demo", arguments.set)
    directory = directory_of(arguments, config)
    manifests = run_stages(config, directory)
    show_stages(manifests)
    show_results(config, directory)
    print("starting tritonserver ...", flush=True)
    with Server(directory / "export" / MODEL_REPOSITORY) as server, Client(server.grpc_url) as client:
        for user, sequence in examples.pick(directory, 3).items():
            answer = client.recommend([sequence[:-1]], k=5, exclude_seen=True)
            show_user(directory, user, sequence[:-1], answer)
        histories = [sequence[:-1] for sequence in examples.sequences(directory).values()]
        parity = check_served(directory, server.grpc_url, histories, shortlist=config.serve.shortlist)
    print(f"served = offline for {parity.equal + parity.ties} of {parity.histories} users")
    models = [directory, *(path for path in sorted((directory / BASELINES).glob("*")) if path.is_dir())]
    print(f"look around:       llmcfsr explore {' '.join(map(str, models))}   (then http://127.0.0.1:8050)")
    print(f"serve it yourself: llmcfsr serve {directory}")
    question = json.dumps({"history": sequence[:2], "k": 5})
    print(f"and query it:      curl -s --json '{question}' localhost:8000/recommend")
    print(f"                   llmcfsr recommend --url grpc://localhost:8001 {' '.join(sequence[:2])}")
    return 0 if parity.passed else 1


VERB = Verb(
    "demo", "the whole pipeline on generated data: raw logs to recommendations served by Triton", _arguments, _run
)
