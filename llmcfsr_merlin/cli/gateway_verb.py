"""`llmcfsr gateway`: a JSON gateway in front of servers that run elsewhere."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.gateway_arguments import add_gateway, gateway_options
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_gateway(parser)
    parser.add_argument(
        "--replica", action="append", required=True, metavar="HOST:PORT", help="gRPC of a server; again for another"
    )


def _run(arguments: Namespace) -> int:
    from llmcfsr_merlin.runtime.errors import InputError
    from llmcfsr_merlin.serving.repository import repository_of
    from llmcfsr_merlin.serving.supervise import serve_gateway

    replicas = [address.removeprefix("grpc://") for address in arguments.replica]
    for address in replicas:
        if not address.rpartition(":")[2].isdecimal() or not address.rpartition(":")[0] or "/" in address:
            raise InputError(f"--replica: expected HOST:PORT of a server's gRPC, found {address!r}")
    options = gateway_options(arguments)
    return serve_gateway(repository_of(arguments.run), replicas, options, arguments.start_timeout)


VERB = Verb("gateway", "a JSON gateway in front of servers that run elsewhere", _arguments, _run)
