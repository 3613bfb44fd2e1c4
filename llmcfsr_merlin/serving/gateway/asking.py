"""From questions to answers: the cache, the queue, the replicas, and the popular items if none answers."""

import asyncio
import time
from collections.abc import Sequence

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.serving.gateway.answer_cache import AnswerCache
from llmcfsr_merlin.serving.gateway.catalogue import Catalogue
from llmcfsr_merlin.serving.gateway.catalogue_shards import Shards
from llmcfsr_merlin.serving.gateway.problems import Problem, invalid_fields
from llmcfsr_merlin.serving.gateway.replicas import Replicas
from llmcfsr_merlin.serving.gateway.slots import Slots
from llmcfsr_merlin.serving.gateway.telemetry import Telemetry
from llmcfsr_merlin.serving.gateway.tensors import Found, Row, kind
from llmcfsr_merlin.serving.gateway.together import Together
from llmcfsr_merlin.serving.item_table import version_name
from llmcfsr_merlin.serving.repository import Served, served


class Asking:
    """Everything between a checked request and its answer."""

    def __init__(self, settings: GatewayConfig, replicas: Replicas | Shards, catalogue: Catalogue,
                 telemetry: Telemetry):  # fmt: skip
        self.settings, self.replicas, self.catalogue, self.telemetry = settings, replicas, catalogue, telemetry
        self._read_repository()
        self.cache = AnswerCache(settings.cache, settings.cache_seconds)
        self.slots = Slots(settings.in_flight, settings.queue)
        self._together = Together(
            replicas.find, lambda: settings.join_from * len(replicas.ready), lambda: self.served.max_rows
        )
        replicas.changed = self.replicas_changed

    def replicas_changed(self) -> None:
        """As many requests are in flight as the ready replicas may have."""
        self.slots.resize(self.settings.in_flight * max(len(self.replicas.ready), 1))

    async def refresh(self) -> None:
        """Look for a newer version in the repository."""
        if await self.catalogue.refresh():
            self.cache.clear()
            self._read_repository()

    def _read_repository(self) -> None:
        self.served: Served = served(self.catalogue.repository)
        self.replicas.explains = self.served.explains

    async def answer(self, rows: Sequence[Row]) -> list[dict]:
        """One answer per row. Requests of as many rows as Triton takes are in flight at once."""
        if any(row.explain for row in rows) and not self.served.explains:
            raise invalid_fields([("explain", "this model gives no reasons: export anew with serve.format=python")])
        versions = self.replicas.versions
        answers = [self.cache.get(row, versions) for row in rows]
        missing = [place for place, answer in enumerate(answers) if answer is None]
        deadline = time.monotonic() + self.settings.timeout
        groups = _groups(rows, missing, self.served.max_rows)
        if len(groups) == 1:
            found = [await self._ask([rows[place] for place in groups[0]], deadline)]
        else:
            work = [asyncio.ensure_future(self._ask([rows[p] for p in group], deadline)) for group in groups]
            try:
                found = await asyncio.gather(*work)
            except BaseException:  # one has failed, or the client is gone: the others are of no use
                for task in work:
                    task.cancel()
                raise
        for group, some in zip(groups, found):
            for place, answer in zip(group, some):
                answers[place] = answer
        return answers  # type: ignore[return-value]

    async def _ask(self, rows: list[Row], deadline: float) -> list[dict]:
        try:
            found = await self._found(rows, deadline)
        except Problem as problem:
            if problem.kind != "no-server" or not self.settings.fallback:
                raise
            self.telemetry.degraded.inc(len(rows))
            return [self.catalogue.popular_answer(row) for row in rows]
        answers = [self._told(one) for one in found]
        for row, answer in zip(rows, answers):
            self.cache.put(row, answer)
        return answers

    async def _found(self, rows: list[Row], deadline: float) -> list[Found]:
        if not self.replicas.ready:  # nothing to wait for
            return await self.replicas.find(rows, deadline)
        await self.slots.take(deadline - time.monotonic())
        try:
            with self.telemetry.triton.time():
                if len(rows) == 1:
                    return [await self._together.find(rows[0], deadline)]
                return await self.replicas.find(rows, deadline)
        finally:
            self.slots.give()

    def _told(self, found: Found) -> dict:
        titled = self.catalogue.titled
        items = [titled({"id": raw, "score": score}) for raw, score in zip(found.items, found.scores)]
        if found.reasons is not None:
            for item, reason in zip(items, found.reasons):
                item["reasons"] = reason
        return {
            "items": items,
            "unknown": found.unknown,
            "fallback": found.fallback,
            "degraded": False,
            "exact": found.exact,
            "model_version": version_name(found.tag),
        }


def _groups(rows: Sequence[Row], places: list[int], most: int) -> list[list[int]]:
    """Places of rows that can be asked together, at most `most`."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for place in places:
        groups.setdefault(kind(rows[place]), []).append(place)
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]
