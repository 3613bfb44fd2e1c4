"""Properties of prompts, augmentation, masks and the item table, for any input."""

import random
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcfsr_merlin.dataset.raw.fields.clean_text import clean, join_values
from llmcfsr_merlin.text.prompts import Prompter, augment
from llmcfsr_merlin.text.tuning.pairs import Neighbours, PairSampler

VALUES = st.one_of(
    st.none(), st.text(max_size=60), st.floats(), st.lists(st.text(max_size=20), max_size=4), st.integers()
)
ATTRIBUTES = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("xyz")), min_size=1, max_size=6)


@given(st.text(max_size=300), st.integers(1, 50))
def test_clean_text_is_one_short_line(text, limit):
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit and "\n" not in cleaned and "\x00" not in cleaned and cleaned == cleaned.strip()


@given(st.dictionaries(st.sampled_from(["item_id", "title", "brand", "categories", "stars", "colour"]), VALUES))
def test_any_row_has_a_prompt(row):
    prompter = Prompter.of("generic")
    attributes = prompter.attributes(row)
    assert all(value for _, value in attributes) and not any(label == "stars" for label, _ in attributes)
    assert bool(prompter(row)) == bool(attributes) and "\n" not in prompter(row)
    assert isinstance(join_values(row.get("title"), 10), str)


@given(ATTRIBUTES, st.floats(0, 0.99), st.integers())
def test_a_copy_holds_only_the_items_attributes(attributes, drop, seed):
    copy = augment(attributes, drop, random.Random(seed))
    rest = list(attributes)
    for entry in copy:
        rest.remove(entry)
    exact = len(attributes) * (1 - drop)
    assert 1 <= len(copy) <= len(attributes) and len(copy) >= int(exact) and len(copy) <= max(1, int(exact) + 1)
    assert copy == augment(attributes, drop, random.Random(seed))


@settings(max_examples=50)
@given(st.lists(ATTRIBUTES, min_size=2, max_size=12), st.floats(0, 0.9), st.integers(0, 5))
def test_masks_leave_out_exactly_what_cannot_be_told_apart(items, drop, epoch):
    prompter = Prompter.of("generic")
    batch = PairSampler(items, prompter, batch_size=len(items), drop=drop, seed=0).batch(range(len(items)), epoch)
    for texts, mask in ((batch.left, batch.left_mask), (batch.right, batch.right_mask)):
        for i, text in enumerate(texts):
            copy = set(text.split("; "))
            for j, other in enumerate(items):
                whole = {f"{label}: {value}" for label, value in other}
                assert mask[i, j] == (i != j and copy <= whole)


@given(st.lists(st.lists(st.integers(-1, 9), max_size=8), max_size=6))
def test_neighbours_are_symmetric_and_adjacent(sequences):
    found = Neighbours.of([np.array(row, dtype=np.int64) for row in sequences], 10)
    pairs = [(i, int(o)) for i in range(10) for o in found.items[found.starts[i] : found.starts[i + 1]]]
    expected = [
        pair for row in sequences for a, b in pairwise(row) if a >= 0 and b >= 0 and a != b for pair in ((a, b), (b, a))
    ]
    assert sorted(pairs) == sorted(expected)
