"""A request's body: read up to a limit, as JSON."""

from typing import Any

import orjson
from starlette.requests import Request

from llmcfsr_merlin.serving.gateway.problems import Problem

_CLOSE = {"connection": "close"}  # what is left of the body would be read as the next request


async def json_of(request: Request, most: int) -> Any:
    """The body as Python values; Problem if it is larger than `most` bytes, or no JSON."""
    length = None
    kind = b""
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-type":
            kind = value.split(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise Problem(
            "unsupported-media-type", "expected content-type: application/json (curl --json sends it)", headers=_CLOSE
        )
    if length is not None and (not length.isdigit() or int(length[:20]) > most):
        raise _too_large(most)
    body = await _read(request, most)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("invalid-json", f"expected JSON: {error.msg} (byte {error.pos})"[:200]) from None


async def _read(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        event = await request.receive()
        if event["type"] == "http.disconnect":
            raise Problem("request-timeout", "the client went away", headers=_CLOSE)
        part = event.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
        if not event.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> Problem:
    return Problem("body-too-large", f"expected at most {most} bytes (gateway.max_body_bytes)", headers=_CLOSE)
