"""Checks a server's ports before it loads anything."""

import contextlib
import errno
import socket

from llmcfsr_merlin.runtime.errors import InputError


def reserve(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """Ports by name (http, grpc, metrics) for `host`; free ones for 0. InputError names the one that is not
    available."""
    numbers = [port for port in wanted.values() if port]
    for name, port in wanted.items():
        if not 0 <= port <= 65535:
            raise InputError(f"--{name}-port: expected 0 (any free one) to 65535, found {port}")
        if port and numbers.count(port) > 1:
            raise InputError(f"--{name}-port: expected a port of its own, found {port} for two of {', '.join(wanted)}")
    address = resolve(host)
    with contextlib.ExitStack() as held:  # reserved together: free ports must differ
        return {name: _bind(held, host, address, name, port) for name, port in wanted.items()}


def resolve(host: str) -> str:
    """The IPv4 address of `host`; Triton's HTTP server does not accept names."""
    try:
        return str(socket.getaddrinfo(host or "0.0.0.0", None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InputError(f"--host: expected an IPv4 address or a name of this machine, found {host!r}") from error


def _bind(held: contextlib.ExitStack, host: str, address: str, name: str, port: int) -> int:
    probe = held.enter_context(socket.socket())
    # As Triton does: closed connections of an earlier server do not count, a listening one does.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if port else 0)
    try:
        probe.bind((address, port))
        probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"{name} port {port} on {host} is in use by another program: stop it, or choose another port "
                f"with --{name}-port (0 picks a free one)"
            ) from error
        if error.errno == errno.EACCES:
            raise InputError(f"{name} port {port} needs root: choose one above 1023 with --{name}-port") from error
        raise InputError(f"--host: expected an address of this machine, found {host!r} ({error.strerror})") from error
    return probe.getsockname()[1]
