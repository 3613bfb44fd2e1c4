"""What `serve` and `gateway` have in common on the command line."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcfsr_merlin.serving.gateway_server import GatewayOptions


def add_gateway(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo, or a model repository")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--gateway-port", type=int, default=8000, help="default 8000; 0 takes a free one")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--api-keys", type=Path, metavar="FILE", help="one `name key` per line; needed beyond loopback")
    keys.add_argument("--no-api-keys", action="store_true", help="let everybody who reaches --host send requests")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="of pages that may send requests")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. gateway.timeout=2")
    parser.add_argument("--log-requests", action="store_true", help="one line per request, without its content")
    parser.add_argument("--start-timeout", type=float, default=120, metavar="SECONDS", help="default 120")


def gateway_options(arguments: Namespace) -> "GatewayOptions":
    """Settings are those of the run, if it is one, changed by --set."""
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.runtime.errors import InputError
    from llmcfsr_merlin.runtime.layout import RECORD
    from llmcfsr_merlin.serving.gateway_server import GatewayOptions

    others = [text for text in arguments.set if not text.startswith("gateway.")]
    if others:
        raise InputError(f"--set: expected a setting of the gateway (gateway.KEY=VALUE), found {others[0]!r}")
    record = arguments.run / RECORD
    config = Config.load(record if record.is_file() else None, arguments.set)
    return GatewayOptions(
        arguments.host, arguments.gateway_port, arguments.api_keys, arguments.no_api_keys, tuple(arguments.cors),
        arguments.log_requests, config.gateway,
    )  # fmt: skip
