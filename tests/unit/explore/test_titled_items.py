"""The search for items by title."""

import time

import numpy as np
import pyarrow as pa
import pytest

from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.explore.titled_items import RunItems


@pytest.fixture
def items():
    vocabulary = Vocabulary(["a", "b", "c", "d"], np.array([1, 5, 3, 2]))
    titles = pa.array(["Nail polish red", "Polish for NAILS", None, "Lipstick &amp; more"], pa.large_string())
    return RunItems(vocabulary, titles)


def test_all_words_in_any_order_and_case_the_most_popular_first(items):
    assert [one.item for one in items.search("polish nail", 9)] == ["b", "a"]
    assert [one.item for one in items.search("POLISH", 1)] == ["b"]
    assert items.search("polish blue", 9) == []
    assert items.search("nail.*", 9) == []  # no pattern


def test_an_id_comes_first_and_an_empty_search_gives_what_is_popular(items):
    assert [one.item for one in items.search("a", 9)] == ["a", "b", "d"]
    assert [(one.item, one.title, one.interactions) for one in items.search(" ", 2)] == [
        ("b", "Polish for NAILS", 5), ("c", None, 3)
    ]  # fmt: skip


def test_names(items):
    assert [items.title_of(item) for item in ("d", "c", "unknown")] == ["Lipstick & more", "c", "unknown"]
    assert RunItems(Vocabulary(["a"]), None).search("a", 3)[0].title is None


def test_a_million_titles_are_searched_in_a_moment():
    count = 1_000_000
    vocabulary = Vocabulary([f"i{place}" for place in range(count)])
    titles = pa.array(
        [f"brand {place % 997} kind {place % 89} no {place}" for place in range(count)], pa.large_string()
    )
    items = RunItems(vocabulary, titles)
    start = time.process_time()
    found = items.search("brand 12 kind 7", 20)
    assert len(found) == 20 and time.process_time() - start < 2  # 0.3 s on an idle core
