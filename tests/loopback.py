"""An HTTP server of a handler class on a free loopback port, in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Its address; what it would log is dropped."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Quiet", (handler,), {"log_message": lambda *_: None}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
