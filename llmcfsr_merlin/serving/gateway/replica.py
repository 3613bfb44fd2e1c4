"""One tritonserver: a channel over which many requests are in flight, and what it said of itself last."""

import asyncio
import time
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from llmcfsr_merlin.serving.channels import channel_options
from llmcfsr_merlin.serving.gateway.tensors import Row, message, read
from llmcfsr_merlin.serving.item_table import version_name

_PROBE = [Row([], 1, None, None, [], False)]
# gRPC waits longer and longer before it connects again; a server that has started again is to be found at once.
_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100),
              ("grpc.max_reconnect_backoff_ms", 500)]  # fmt: skip


class Gone(Exception):
    """The replica was put aside while it was being asked, or its answer cannot be read."""


class Replica:
    """address: host:port of its gRPC. ready: asked unless put aside. last_answer: time.monotonic() of the last one."""

    def __init__(self, address: str):
        self.address = address
        self.ready = False
        self.version = ""
        self.ejections = 0
        self.last_answer = 0.0
        self.look_now = asyncio.Event()
        self._calls: set[Any] = set()
        self._dropped: set[Any] = set()

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    def connect(self) -> None:
        self._channel = grpc.aio.insecure_channel(self.address, options=channel_options(self.address) + _RECONNECT)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def ask(self, request: Any, timeout: float) -> Any:
        """A ModelInferResponse. Raises AioRpcError, or Gone where the replica was dropped meanwhile."""
        call = self._stub.ModelInfer(request, timeout=timeout)
        self._calls.add(call)
        try:
            reply = await call
        except asyncio.CancelledError:
            if call in self._dropped:
                raise Gone("it was put aside while it was asked") from None
            raise
        finally:
            self._calls.discard(call)
            self._dropped.discard(call)
        self.last_answer = time.monotonic()
        return reply

    def drop(self) -> None:
        """Ask it no more, and give up what it is being asked."""
        self.ready = False
        for call in list(self._calls):
            self._dropped.add(call)
            call.cancel()

    async def look(self, timeout: float) -> None:
        """Ask a real question, of an empty history: ready if it is answered."""
        reply = await self._stub.ModelInfer(message(_PROBE), timeout=timeout)
        try:
            version = version_name(read(reply, _PROBE)[0].tag)
        except (KeyError, ValueError, IndexError) as error:
            raise Gone("it serves a repository of an earlier version of this package: export anew") from error
        self.version, self.last_answer, self.ready = version, time.monotonic(), True
