"""`llmcfsr serve`: start a tritonserver for an exported run."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo, or a model repository")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port, help=f"default {port}; 0 picks a free one")
    parser.add_argument("--start-timeout", type=float, default=120, metavar="SECONDS", help="default 120")
    parser.add_argument(
        "--key-file", type=Path, help="file for the admin key that loading models needs (default: in a private folder)"
    )
    parser.add_argument("--log-requests", action="store_true", help="log one line per request")


def _run(arguments: Namespace) -> int:
    from llmcfsr_merlin.serving.repository import repository_of
    from llmcfsr_merlin.serving.supervise import serve

    return serve(
        repository_of(arguments.run),
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        timeout=arguments.start_timeout,
        key_file=arguments.key_file,
        log_requests=arguments.log_requests,
    )


VERB = Verb("serve", "serve an exported run with tritonserver, restarted if it fails", _arguments, _run)
