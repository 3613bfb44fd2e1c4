"""Errors as RFC 9457 problem details: one JSON object that says what was expected, and of which field."""

from typing import Any

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
_SHOWN = 10  # wrong fields that are named

# The last part of `type`, with its status and title.
KINDS = {
    "invalid-json": (400, "The body is not JSON"),
    "invalid-field": (422, "A field is not as expected"),
    "unauthorized": (401, "An API key is needed"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "request-timeout": (408, "The request did not arrive in time"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is not declared as JSON"),
    "rate-limited": (429, "Too many requests"),
    "head-too-large": (431, "The header is too large"),
    "internal": (500, "An error of the gateway"),
    "overloaded": (503, "Too many requests are waiting"),
    "no-server": (503, "No model server answers"),
    "timeout": (503, "No answer in time"),
}


class Problem(Exception):
    """An answer that is an error. kind: of KINDS; errors: (field, detail) of each wrong field."""

    def __init__(
        self,
        kind: str,
        detail: str,
        errors: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(detail)
        self.kind, self.detail, self.errors, self.headers = kind, detail, errors or [], headers or {}

    @property
    def status(self) -> int:
        return KINDS[self.kind][0]

    def body(self) -> bytes:
        status, title = KINDS[self.kind]
        found: dict[str, Any] = {
            "type": f"urn:llmcfsr:problem:{self.kind}", "title": title, "status": status, "detail": self.detail
        }  # fmt: skip
        if self.errors:
            found["errors"] = [{"field": field, "detail": detail} for field, detail in self.errors[:_SHOWN]]
        return orjson.dumps(found)

    def response(self) -> Response:
        return Response(self.body(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def invalid_fields(errors: list[tuple[str, str]]) -> Problem:
    field, detail = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem("invalid-field", f"{field}: {detail}{more}", errors)


def busy(kind: str, detail: str, seconds: int = 1) -> Problem:
    """A problem that passes: Retry-After says in how many seconds."""
    return Problem(kind, detail, headers={"retry-after": str(seconds)})
