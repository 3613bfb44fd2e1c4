"""`llmcfsr serve`: a tritonserver for an exported run, and a JSON gateway in front of it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.gateway_arguments import add_gateway, gateway_options
from llmcfsr_merlin.cli.verb import Verb

_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


def _arguments(parser: ArgumentParser) -> None:
    add_gateway(parser)
    parser.add_argument("--no-gateway", action="store_true", help="Triton's own ports on --host, and nothing else")
    parser.add_argument("--triton-host", default="127.0.0.1", help="of Triton behind the gateway (default: loopback)")
    for name, port in _PORTS.items():
        default = f"{port} (behind the gateway: a free one)" if name == "http" else port
        parser.add_argument(f"--{name}-port", type=int, help=f"Triton's, default {default}; 0 picks a free one")
    parser.add_argument(
        "--key-file", type=Path, help="file for the admin key that loading models needs (default: in a private folder)"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="rank part I of N of the catalogue alone, for `llmcfsr gateway --shard`"
    )


def _run(arguments: Namespace) -> int:
    from llmcfsr_merlin.runtime.errors import InputError
    from llmcfsr_merlin.serving.repository import repository_of
    from llmcfsr_merlin.serving.supervise import serve
    from llmcfsr_merlin.serving.wire import read_shard

    shard = None if arguments.shard is None else read_shard(arguments.shard)
    if shard is not None and not arguments.no_gateway:
        raise InputError("--shard needs --no-gateway: one gateway asks all shards (`llmcfsr gateway --shard`)")
    gateway = None if arguments.no_gateway else gateway_options(arguments)
    ports = {f"{name}_port": getattr(arguments, f"{name}_port") for name in _PORTS}
    for name, port in _PORTS.items():
        if ports[f"{name}_port"] is None:
            ports[f"{name}_port"] = 0 if name == "http" and gateway else port
    return serve(
        repository_of(arguments.run),
        gateway,
        host=arguments.triton_host if gateway else arguments.host,
        timeout=arguments.start_timeout,
        key_file=arguments.key_file,
        log_requests=arguments.log_requests and gateway is None,
        shard=shard,
        **ports,
    )


VERB = Verb("serve", "serve an exported run: Triton behind a JSON gateway, restarted if they fail", _arguments, _run)
