"""What the gateway counts, for Prometheus. No label comes from a request's content."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmcfsr_merlin.serving.gateway.answer_cache import AnswerCache
from llmcfsr_merlin.serving.gateway.replica import Replica
from llmcfsr_merlin.serving.gateway.slots import Slots

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Telemetry:
    """Counters of one gateway in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: Any = {"registry": self.registry, "namespace": "llmcfsr_gateway"}
        self.requests = Counter("requests", "Answered requests", ["route", "status"], **common)
        self.seconds = Histogram("request_seconds", "From head to answer", ["route"], buckets=_SECONDS, **common)
        self.users = Counter("users", "Users that were asked for", **common)
        self.degraded = Counter("degraded_answers", "Users answered without a model server", **common)
        self.triton = Histogram("triton_seconds", "Of one request to Triton", buckets=_SECONDS, **common)
        self.cancelled = Counter("cancelled", "Requests whose client went away", **common)
        self.closed = Counter("closed_connections", "Connections closed on slow clients", **common)
        self._in_flight = Gauge("in_flight", "Requests at Triton", **common)
        self._queued = Gauge("queued", "Requests that wait", **common)
        self._cached = Gauge("cache_answers", "Answers in the cache", **common)
        self._hits = Gauge("cache_hits", "Answers given from the cache", **common)
        self._up = Gauge("replica_up", "1: asked, 0: put aside", ["replica"], **common)
        self._ejections = Gauge("replica_ejections", "Times that it was put aside", ["replica"], **common)

    def exposition(self, slots: Slots, cache: AnswerCache, replicas: Sequence[Replica]) -> bytes:
        """The text that Prometheus reads, with what these hold now."""
        self._in_flight.set(slots.held)
        self._queued.set(slots.waiting)
        self._cached.set(len(cache))
        self._hits.set(cache.hits)
        for replica in replicas:
            self._up.labels(replica.address).set(replica.ready)
            self._ejections.labels(replica.address).set(replica.ejections)
        return generate_latest(self.registry)
