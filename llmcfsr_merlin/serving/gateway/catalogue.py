"""The items of the newest version in the repository: titles, search, and what is popular."""

import asyncio
import logging
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.gateway.slots import Slots
from llmcfsr_merlin.serving.gateway.tensors import Row
from llmcfsr_merlin.serving.item_table import ItemTable
from llmcfsr_merlin.serving.repository import newest_items

_log = logging.getLogger(__name__)
_SEARCHES = 32  # that wait for the one that is under way


class Catalogue:
    """`table` is that of the version that was published last; `refresh` looks for a newer one."""

    def __init__(self, repository: Path):
        self.repository = Path(repository)
        self._folder = newest_items(self.repository)
        self.table = ItemTable(self._folder)
        self._searches = Slots(1, _SEARCHES)

    async def refresh(self) -> bool:
        """Whether another version was found; what cannot be read is left out, with a warning."""
        try:
            folder = newest_items(self.repository)
            if folder == self._folder:
                return False
            self.table = await asyncio.to_thread(ItemTable, folder)
        except (InputError, OSError, IndexError, ValueError) as error:
            _log.warning("the items of the newest version cannot be read: %s", error)
            return False
        self._folder = folder
        return True

    def popular_answer(self, row: Row) -> dict:
        """What a user gets while no model server answers: the popular items under the same filters, flagged."""
        table = self.table
        left_out = table.excludes_seen if row.exclude_seen is None else row.exclude_seen
        without = row.deny + (row.history if left_out else [])
        items = [{"id": raw, "score": score} for raw, score in table.popular(row.k, without, row.allow)]
        unknown = sum(table.find(raw) is None for raw in row.history)
        return {
            "items": [self.titled(item) for item in items],
            "unknown": unknown,
            "fallback": unknown == len(row.history),
            "degraded": True,
            "exact": True,
            "model_version": table.version,
        }

    def titled(self, item: dict) -> dict:
        """An item of an answer with its title, if it has one."""
        title = self.table.title(item["id"])
        if title is not None:
            item["title"] = title
        return item

    async def search(self, text: str, limit: int, timeout: float) -> list[dict]:
        """As ItemTable.search, beside the event loop and one at a time: it reads every title."""
        await self._searches.take(timeout)
        try:
            return await asyncio.to_thread(self.table.search, text, limit)
        finally:
            self._searches.give()
