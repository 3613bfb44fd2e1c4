"""Serves the page from this process."""

import contextlib
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from llmcfsr_merlin.explore.explorer import Explorer
from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.serving.ports import reserve, resolve

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_installed() -> None:
    """MissingDependency without the extra `explore`."""
    # Why NiceGUI: it stands on the gateway's FastAPI and uvicorn, pins neither pandas nor numpy (by either profile's
    # pins pip takes Gradio back to 3.18, of 2023), ships every file that a page loads, sends no telemetry, runs one
    # handler for a click where Streamlit runs the whole script, and shows text as text unless told otherwise.
    try:
        import nicegui  # noqa: F401
    except ImportError as error:
        raise MissingDependency("the page needs nicegui: pip install 'llmcfsr-merlin[explore]'") from error


def bound(host: str, port: int) -> socket.socket:
    """A socket on an address of this machine; port 0 takes a free one. InputError if it cannot be had."""
    number = reserve(host, {"page": port})["page"]
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind((resolve(host), number))
    return taken


def serve(explorer: Explorer, taken: socket.socket, host: str, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. announce: called with the address when it answers."""
    import uvicorn
    from fastapi import FastAPI
    from nicegui import ui

    from llmcfsr_merlin.explore.explore_page import ExplorePage

    app = FastAPI(openapi_url=None)

    @ui.page("/")
    async def page() -> None:
        await ExplorePage(explorer).build()

    ui.run_with(app, title="llmcfsr explore", dark=False, show_welcome_message=False, tailwind=False)
    shown = "127.0.0.1" if host in ("", "0.0.0.0") else host
    address = f"http://{shown}:{taken.getsockname()[1]}"

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce(address)

    own = OwnPage(app, _LOOPBACK if host in _LOOPBACK else None)
    settings = uvicorn.Config(own, log_level="warning", timeout_graceful_shutdown=1, ws="websockets-sansio")
    with contextlib.suppress(KeyboardInterrupt):
        Announced(settings).run(sockets=[taken])


class OwnPage:
    """ASGI middleware that refuses what pages of other sites send: a request for another host name (DNS rebinding), or
    one that another origin's script makes. hosts: names that are served; None: any."""

    def __init__(self, app: Any, hosts: tuple[str, ...] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and not self._own(dict(scope["headers"])):
            if scope["type"] == "http":
                await send(
                    {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
                )
                await send({"type": "http.response.body", "body": b"this page is not for other sites\n"})
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)

    def _own(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return False
        return not origin or urlsplit(origin).netloc == host
