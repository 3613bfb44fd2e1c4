"""How a gRPC channel to a server is opened."""

import contextlib
import ipaddress


def channel_options(address: str) -> list[tuple[str, int]]:
    """tritonclient's own, no memory of failed connections in new channels, and no proxy before this machine."""
    options = [(f"grpc.max_{way}_message_length", 2**31 - 1) for way in ("send", "receive")]
    options.append(("grpc.use_local_subchannel_pool", 1))
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if found.is_loopback or found.is_unspecified:
            options.append(("grpc.enable_http_proxy", 0))  # else asked through http_proxy
    return options
