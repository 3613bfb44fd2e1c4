"""`llmcfsr gateway`: a JSON gateway in front of servers that run elsewhere."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.gateway_arguments import add_gateway, gateway_options
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_gateway(parser)
    servers = parser.add_mutually_exclusive_group(required=True)
    servers.add_argument("--replica", action="append", metavar="HOST:PORT", help="gRPC of a server; may be repeated")
    servers.add_argument(
        "--shard",
        action="append",
        metavar="HOST:PORT[,HOST:PORT]",
        help="gRPC addresses of the servers of shard 1; repeat for shard 2, ... (`llmcfsr serve --shard`)",
    )


def _run(arguments: Namespace) -> int:
    from llmcfsr_merlin.runtime.errors import InputError
    from llmcfsr_merlin.serving.repository import repository_of
    from llmcfsr_merlin.serving.supervise import serve_gateway

    name, found = ("--shard", arguments.shard) if arguments.shard else ("--replica", arguments.replica)
    servers = [[address.removeprefix("grpc://") for address in one.split(",")] for one in found]
    for address in (address for one in servers for address in one):
        if not address.rpartition(":")[2].isdecimal() or not address.rpartition(":")[0] or "/" in address:
            raise InputError(f"{name}: expected HOST:PORT of a server's gRPC, found {address!r}")
    if name == "--replica" and any(len(one) > 1 for one in servers):
        raise InputError("--replica: expected one HOST:PORT, found several: give --replica again for each")
    addresses = [",".join(one) for one in servers]
    options, sharded = gateway_options(arguments), name == "--shard"
    return serve_gateway(repository_of(arguments.run), addresses, options, arguments.start_timeout, sharded)


VERB = Verb("gateway", "a JSON gateway in front of servers that run elsewhere", _arguments, _run)
