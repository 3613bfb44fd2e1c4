"""Items by title: the search, and how an item is called on the page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, TITLE
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.serving.item_table import LONGEST, title_table

_MOST_WORDS = 8  # of a query: each one is a pass over the titles


@dataclass(frozen=True)
class FoundItem:
    """An item by its raw id. title: None without one. interactions: None if unknown."""

    item: str
    title: str | None
    interactions: int | None = None


class Items(Protocol):
    """Where the page finds items."""

    def search(self, text: str, limit: int) -> list[FoundItem]:
        """Items whose title has all the words of `text`, the most popular first; before them the item of that id."""

    def title_of(self, item: str) -> str:
        """The title of a raw id, or the id."""


class RunItems:
    """The items of a run. Titles stay in Arrow; a search is one pass over those that are left, word by word."""

    def __init__(self, vocabulary: Vocabulary, titles: pa.LargeStringArray | None):
        """titles: one an item of the vocabulary in its order, null without one; None: no item has a title."""
        self._vocabulary = vocabulary
        self._counts = vocabulary.counts[FIRST_ITEM:]
        self._titles = titles
        self._popular = np.argsort(-self._counts, kind="stable")

    @classmethod
    def load(cls, trained: Path, vocabulary: Vocabulary) -> "RunItems":
        """Of a trained model's folder: the titles that it was sealed with, else those of its run."""
        table = title_table(trained)
        if table is None:
            return cls(vocabulary, None)
        places = pc.index_in(pa.array(vocabulary.ids, pa.large_string()), table[ITEM].cast(pa.large_string()))
        return cls(vocabulary, table[TITLE].cast(pa.large_string()).combine_chunks().take(places))

    def search(self, text: str, limit: int) -> list[FoundItem]:
        """As Items.search; of an empty text the most popular items."""
        words = text.split()[:_MOST_WORDS]
        if not words:
            return [self._found(int(place)) for place in self._popular[:limit]]
        exact = [code - FIRST_ITEM for code in self._vocabulary.encode([text]) if code >= FIRST_ITEM]
        best = [place for place in self._places(words)[: limit + 1] if place not in exact]
        return [self._found(place) for place in [*exact, *best][:limit]]

    def _places(self, words: list[str]) -> list[int]:
        if self._titles is None:
            return []
        places = np.arange(len(self._counts))
        titles = self._titles
        for word in sorted(words, key=len, reverse=True):  # the rarest first, as far as length tells
            hits = np.asarray(
                pc.indices_nonzero(pc.fill_null(pc.match_substring(titles, word, ignore_case=True), False))
            )
            titles, places = titles.take(pa.array(hits)), places[hits]
        return places[np.argsort(-self._counts[places], kind="stable")].tolist()

    def _found(self, place: int) -> FoundItem:
        return FoundItem(self._vocabulary.ids[place], self._title(place), int(self._counts[place]))

    def _title(self, place: int) -> str | None:
        return None if self._titles is None else clean(self._titles[place].as_py(), LONGEST) or None

    def title_of(self, item: str) -> str:
        (code,) = self._vocabulary.encode([item])
        return (self._title(code - FIRST_ITEM) if code >= FIRST_ITEM else None) or item
