"""Questions to KServe tensors and back, on the protocol's own messages: numpy arrays would be made for each request."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from llmcfsr_merlin.serving.repository import EXPLAIN, FRONT

_EMPTY = struct.pack("<I", 0)  # a text of no bytes: padding
_OUTPUTS = ("ITEMS", "SCORES", "UNKNOWN", "FALLBACK", "BUNDLE", "EXACT")


class Row(NamedTuple):
    """One user's question: raw ids as texts; exclude_seen None: as the model was trained; allow None: every item."""

    history: list[str]
    k: int
    exclude_seen: bool | None
    allow: list[str] | None
    deny: list[str]
    explain: bool


class Found(NamedTuple):
    """One user's answer. scores: float32; reasons: Reason as a dictionary per item, None if not asked for."""

    items: list[str]
    scores: np.ndarray
    unknown: int
    fallback: bool
    exact: bool
    tag: int
    reasons: list[dict] | None


def kind(row: Row) -> tuple[bool, bool, bool]:
    """Rows of one kind can be asked together: each says whether the history is left out, or none of them; the same for
    a list of allowed items, and for reasons."""
    return row.exclude_seen is not None, row.allow is not None, row.explain


def message(rows: Sequence[Row], explains: str | None = EXPLAIN) -> Any:
    """A ModelInferRequest of rows of one `kind`. explains: as in repository.Served."""
    count, explain = len(rows), rows[0].explain
    request = service_pb2.ModelInferRequest(model_name=explains if explain and explains else FRONT)
    if explain and explains == FRONT:
        _add(request, "EXPLAIN", "BOOL", (count, 1), bytes([1]) * count)
    _add_texts(request, "HISTORY", [row.history for row in rows])
    _add(request, "TOP_K", "INT32", (count, 1), struct.pack(f"<{count}i", *(row.k for row in rows)))
    if rows[0].exclude_seen is not None:
        _add(request, "EXCLUDE_SEEN", "BOOL", (count, 1), bytes(bool(row.exclude_seen) for row in rows))
    if rows[0].allow is not None:
        _add_texts(request, "ALLOW", [row.allow or [] for row in rows])
    if any(row.deny for row in rows):
        _add_texts(request, "DENY", [row.deny for row in rows])
    for name in (*_OUTPUTS, "REASONS") if explain else _OUTPUTS:
        request.outputs.add(name=name)
    return request


def read(reply: Any, rows: Sequence[Row]) -> list[Found]:
    """A ModelInferResponse as one answer per row; ValueError if it is not the answer to these rows."""
    found = {output.name: (output.shape, raw) for output, raw in zip(reply.outputs, reply.raw_output_contents)}
    if found["ITEMS"][0][0] != len(rows):
        raise ValueError("the answer has another number of rows")
    width = found["ITEMS"][0][1]
    items = _texts(found["ITEMS"][1])
    scores = np.frombuffer(found["SCORES"][1], "<f4")
    unknown = struct.unpack(f"<{len(rows)}i", found["UNKNOWN"][1])
    tags = struct.unpack(f"<{len(rows)}q", found["BUNDLE"][1])
    fallback, exact = found["FALLBACK"][1], found["EXACT"][1]
    reasons = _texts(found["REASONS"][1]) if "REASONS" in found else None
    answers = []
    for place in range(len(rows)):
        start = place * width
        named = [raw.decode() for raw in items[start : start + width] if raw]  # best first, none behind the last
        told = None
        if reasons is not None:
            told = [orjson.loads(text) for text in reasons[start : start + len(named)]]
        kept = scores[start : start + len(named)]
        answers.append(Found(named, kept, unknown[place], bool(fallback[place]), bool(exact[place]), tags[place], told))
    return answers


def _add(request: Any, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)


def _add_texts(request: Any, name: str, rows: Sequence[list[str]]) -> None:
    width = max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))
    parts: list[bytes] = []
    for row in rows:
        for text in row:
            encoded = text.encode()
            parts += (struct.pack("<I", len(encoded)), encoded)
        parts.append(_EMPTY * (width - len(row)))
    _add(request, name, "BYTES", (len(rows), width), b"".join(parts))


def _texts(raw: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4 + length
        found.append(raw[place - length : place])
    return found
