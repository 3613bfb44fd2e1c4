import random

import pytest

from llmcfsr_merlin.dataset.raw.fields.clean_text import clean, join_values
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.prompts import TEMPLATES, Prompter, augment, show

ROW = {
    "item_id": "a",
    "title": "Soap",
    "brand": "Acme",
    "categories": ["Skin", "Body"],
    "stars": "4.5",
    "review_count": 900,
}


@pytest.mark.parametrize(
    ("damaged", "cleaned"),
    [
        ("Salt &amp;amp; Pepper", "Salt & Pepper"),
        ("<b>Bold</b><br/>line", "Bold line"),
        ("cut <a href='x", "cut"),
        ("<script>var x = 1;</script>after", "after"),
        ("size < 5 mm", "size < 5 mm"),
        ("tab\tand\u200b zero\x00", "tab and zero"),
        ("Unknown", ""),
        (" n/a ", ""),
        (None, ""),
        (float("nan"), ""),
        ("var aPageStart = (new Date()).getTime();", ""),
        (12.5, "12.5"),
    ],
)
def test_clean(damaged, cleaned):
    assert clean(damaged, 100) == cleaned


def test_long_text_is_cut_at_a_word():
    assert clean("alpha beta gamma", 11) == "alpha beta"
    assert len(clean("x" * 10_000_000, 100)) == 100


def test_lists_lose_repeats_and_blanks():
    assert join_values(["Gift Cards", "gift cards", "", None, ["Nested", "x"]], 100) == "Gift Cards, Nested, x"


@pytest.mark.parametrize("template", TEMPLATES)
def test_popularity_leaks_only_when_asked(template):
    assert "4.5" not in Prompter.of(template)(ROW) and "900" not in Prompter.of(template)(ROW)


def test_popularity_can_be_shown():
    prompt = Prompter.of("yelp", popularity=True)(ROW)
    assert "stars: 4.5" in prompt and "review count: 900" in prompt


def test_prompt_text():
    assert Prompter.of("beauty")(ROW) == "title: Soap; brand: Acme; categories: Skin, Body"
    assert Prompter.of("generic", "Describe:")(ROW) == "Describe:\ntitle: Soap; brand: Acme; categories: Skin, Body"
    assert Prompter.of("generic")({"item_id": "a", "title": "", "brand": None}) == ""


def test_generic_shows_other_columns_and_no_ids():
    prompt = Prompter.of("generic")(
        {"item_id": "X1", "description": "long", "shoe_size": "42", "title": "Boot", "asin": "Z9"}
    )
    assert prompt == "title: Boot; shoe size: 42; description: long"


def test_unknown_template_is_named():
    with pytest.raises(InputError, match=r"yelp.*'books'"):
        Prompter.of("books")


def test_augment_keeps_one_and_drops_the_share():
    attributes = [(str(n), str(n)) for n in range(5)]
    rng = random.Random(1)
    sizes = [len(augment(attributes, 0.5, rng)) for _ in range(2000)]
    assert set(sizes) == {2, 3} and abs(sum(sizes) / 2000 - 2.5) < 0.05
    assert len(augment(attributes, 0.99, rng)) == 1
    assert augment([], 0.4, rng) == []
    assert sorted(augment(attributes, 0.0, rng)) == attributes
    assert augment(attributes, 0.4, random.Random(7)) == augment(attributes, 0.4, random.Random(7))


def test_show_names_items_without_text():
    text = show([ROW, {"item_id": "b"}], Prompter.of("beauty"))
    assert "a (beauty-v1)" in text and "b (beauty-v1)" in text and "mean vector" in text and "copy 2" in text
