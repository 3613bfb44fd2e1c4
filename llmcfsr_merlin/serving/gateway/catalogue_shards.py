"""A catalogue on several machines: each shard ranks its part, and the gateway merges what they found.

The merge stands here and not in a Triton ensemble: an ensemble's steps run inside one server, and cannot ask another
machine. Nor is it one more server between the gateway and the shards, which would be one more hop and one more thing
to fail.
"""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from llmcfsr_merlin.serving.gateway.problems import Problem, busy
from llmcfsr_merlin.serving.gateway.replica import Replica
from llmcfsr_merlin.serving.gateway.replicas import RETRY_SECONDS, Replicas
from llmcfsr_merlin.serving.gateway.tensors import Found, Row


class Shards:
    """Asks all shards of a catalogue, each of which may have several replicas; used in place of Replicas.

    addresses: of shard 1, 2, ... in order, each host:port, several with commas between them.
    """

    def __init__(self, addresses: Sequence[str], patience: float):
        self.parts = [Replicas(one.split(","), patience) for one in addresses]
        self._addresses = addresses

    @property
    def changed(self) -> Callable[[], None]:
        return self.parts[0].changed

    @changed.setter
    def changed(self, call: Callable[[], None]) -> None:
        for part in self.parts:
            part.changed = call

    @property
    def explains(self) -> str | None:
        return self.parts[0].explains

    @explains.setter
    def explains(self, model: str | None) -> None:
        for part in self.parts:
            part.explains = model

    @property
    def all(self) -> list[Replica]:
        return [replica for part in self.parts for replica in part.all]

    @property
    def ready(self) -> list[Replica]:
        """The ready replicas of the shard with the fewest: as many questions can be answered at once."""
        return min((part.ready for part in self.parts), key=len)

    @property
    def versions(self) -> set[str]:
        return set.intersection(*(part.versions for part in self.parts))

    async def start(self) -> None:
        await asyncio.gather(*(part.start() for part in self.parts))

    async def stop(self) -> None:
        await asyncio.gather(*(part.stop() for part in self.parts))

    async def answers(self) -> bool:
        return all(await asyncio.gather(*(part.answers() for part in self.parts)))

    async def find(self, rows: Sequence[Row], deadline: float) -> list[Found]:
        """The merged answers. Problem, which names the shard, if one does not answer: no partial lists are given."""
        work = [asyncio.ensure_future(self._of_part(place, rows, deadline)) for place in range(len(self.parts))]
        try:
            found = await asyncio.gather(*work)
        except BaseException:  # without one, the others are of no use
            for task in work:
                task.cancel()
            raise
        return [merged(parts, row.k) for parts, row in zip(zip(*found), rows)]

    async def _of_part(self, place: int, rows: Sequence[Row], deadline: float) -> list[Found]:
        try:
            return await self.parts[place].find(rows, deadline)
        except Problem as problem:
            if problem.kind in ("no-server", "timeout"):
                where = f"shard {place + 1} of {len(self.parts)} ({self._addresses[place]})"
                raise Problem(problem.kind, f"{where}: {problem.detail}", headers=problem.headers) from problem
            raise


def merged(parts: Sequence[Found], k: int) -> Found:
    """The k best of what the shards found for one row, ties as in one catalogue: shards hold ascending encoded ids.

    Problem if they serve different versions, whose scores cannot be compared, or one shard was started twice.
    """
    if len({part.tag for part in parts}) > 1:
        raise busy("no-server", "the shards serve different versions of the model", RETRY_SECONDS)
    scores = np.concatenate([part.scores for part in parts])
    items = [item for part in parts for item in part.items]
    if len(set(items)) < len(items):
        raise busy("no-server", "two shards hold the same items: start each with a --shard of its own", RETRY_SECONDS)
    best = np.argsort(-scores, kind="stable")[:k]
    reasons = None
    if parts[0].reasons is not None:
        told = [reason for part in parts for reason in part.reasons or []]
        reasons = [told[place] for place in best]
    kept, exact = [items[place] for place in best], all(part.exact for part in parts)
    return parts[0]._replace(items=kept, scores=scores[best], exact=exact, reasons=reasons)
