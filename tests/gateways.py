"""A gateway in this process, in front of stand-ins for tritonserver that speak its gRPC on loopback."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx
from tritonclient.grpc import service_pb2, service_pb2_grpc

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.serving.gateway.app import make_app

JSON = {"content-type": "application/json"}


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every row with its history's ids, best last, and counts requests. `fail`: a status to end with;
    `delay`: seconds; `hang`: give no answer."""

    def __init__(self, tag: int = 1):
        self.tag, self.asked, self.cancelled = tag, 0, 0
        self.delay, self.hang, self.fail = 0.0, False, None
        self.models: list[str] = []
        self.largest = self.now = 0

    async def ModelInfer(self, request, context):
        tensors = {one.name: (list(one.shape), raw) for one, raw in zip(request.inputs, request.raw_input_contents)}
        rows, width = tensors["HISTORY"][0]
        histories = texts(tensors["HISTORY"][1], width)
        own = rows == 1 and not any(histories[0])  # the watch's
        self.asked += not own
        self.models.append(request.model_name)
        self.now += 1
        self.largest = max(self.largest, self.now)
        try:
            while self.hang:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0 if own else self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        if self.fail is not None and not (own and self.fail == grpc.StatusCode.INTERNAL):
            await context.abort(self.fail, "it fails")
        items = [(list(reversed([x for x in history if x])) + [b""] * width)[:width] for history in histories]
        raws = {
            "ITEMS": ("BYTES", width, b"".join(struct.pack("<I", len(x)) + x for row in items for x in row)),
            "SCORES": ("FP32", width, struct.pack(f"<{rows * width}f", *[1.5] * rows * width)),
            "UNKNOWN": ("INT32", 1, struct.pack(f"<{rows}i", *[0] * rows)),
            "FALLBACK": ("BOOL", 1, bytes(rows)),
            "EXACT": ("BOOL", 1, bytes([1] * rows)),
            "BUNDLE": ("INT64", 1, struct.pack(f"<{rows}q", *[self.tag] * rows)),
        }
        if request.model_name == "explain":
            text = json.dumps({"shares": {"network": 1.5}, "match": "B001"}).encode()
            told = b"".join((struct.pack("<I", len(text)) + text) if x else b"\0" * 4 for row in items for x in row)
            raws["REASONS"] = ("BYTES", width, told)
        reply = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, (kind, wide, raw) in raws.items():
            reply.outputs.add(name=name, datatype=kind, shape=[rows, wide])
            reply.raw_output_contents.append(raw)
        return reply


def texts(raw: bytes, width: int) -> list[list[bytes]]:
    found, place = [], 0
    while place < len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        found.append(raw[place + 4 : place + 4 + length])
        place += 4 + length
    return [found[start : start + width] for start in range(0, len(found), width)]


@contextlib.asynccontextmanager
async def listening(stand_in: StandIn, port: int = 0) -> AsyncIterator[int]:
    """Its port, for as long as it listens."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def asked(repository: Path, ports: list[int], settings: dict | None = None, **options) -> AsyncIterator:
    """An httpx client of a gateway in this process, whose `app` is the application."""
    app = make_app(repository, [f"127.0.0.1:{port}" for port in ports], GatewayConfig(**(settings or {})), **options)
    received, sent = asyncio.Queue(), asyncio.Queue()
    life = asyncio.ensure_future(app({"type": "lifespan", "asgi": {}, "state": {}}, received.get, sent.put))
    await received.put({"type": "lifespan.startup"})
    started = await sent.get()
    assert started["type"] == "lifespan.startup.complete", started
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client
    finally:
        await received.put({"type": "lifespan.shutdown"})
        await life


def run(work: Callable, *arguments) -> None:
    asyncio.run(asyncio.wait_for(work(*arguments), 60))
