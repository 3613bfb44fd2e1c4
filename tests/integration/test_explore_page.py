"""`llmcfsr explore` in a real browser: clicks, what the library says to them, hostile titles, a phone's width."""

import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from llmcfsr_merlin.explore.explorer import Explorer
from llmcfsr_merlin.recommender import Recommender
from tests.browsers import chromium, exploring
from tests.explorable import HOSTILE_ID, write_model, write_run

pytest.importorskip("nicegui", reason="nicegui is not installed (extra `explore`)")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
_MILLISECONDS = 30_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("explore") / "run", hostile=True)
    write_model(run, run / "baselines" / "other", seed=1)
    return run


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser, run):  # the browser first: without one, nothing is started
    with exploring(run, run / "baselines" / "other") as address:
        yield address


@pytest.fixture
def opened(browser, address):
    """Function: a viewport -> the page, loaded. Requests to other hosts and errors of its scripts fail the test."""
    asked, errors, contexts = set(), [], []

    def open_page(viewport=DESKTOP, where=address):
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_MILLISECONDS)
        page.on("request", lambda request: asked.add(request.url.split("/")[2]))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(where)
        page.wait_for_selector(".answer .row-line")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked == {address.removeprefix("http://")} and not errors


def titles(page, place=0):
    return page.locator(".answer").nth(place).locator(".row-head .what").all_inner_texts()


def search(page, text):
    page.get_by_label("part of a title, or an id").fill(text)


def add(page, text, title=None):
    """Search and click; waits until the history holds it."""
    before = page.locator(".history .pick").count()
    search(page, text)
    shown = page.locator(".find .pick")  # a click on the list of the search before would be lost
    words = text.lower().split()
    until(lambda: {all(word in row.lower() for word in words) for row in shown.all_inner_texts()}, {True})
    found = page.locator(".find .pick", has_text=title or text).first
    found.click()
    page.wait_for_function(f"document.querySelectorAll('.history .pick').length == {before + 1}")


def until(found, wanted, seconds=30.0):
    """Wait until a function gives what is wanted: pages follow clicks a moment later."""
    end = time.monotonic() + seconds
    while (value := found()) != wanted:
        assert time.monotonic() < end, f"expected {wanted}, found {value}"
        time.sleep(0.05)


def test_clicks_build_a_history_and_lists_are_the_librarys(opened, run):
    page = opened()
    assert "popular" in page.locator(".answer").first.inner_text()
    add(page, "no 9", "Borealis soap no 9")
    add(page, "SOAP boreal 29", "Borealis soap no 29")
    history = ["i0009", "i0029"]
    explorer = Explorer([run, run / "baselines" / "other"])
    for place, folder in enumerate((run, run / "baselines" / "other")):
        wanted = Recommender.load(folder).recommend([history], k=10)
        until(lambda place=place: titles(page, place), [explorer.items.title_of(item) for item in wanted["item_id"]])
        scores = page.locator(".answer").nth(place).locator(".row-head .score").all_inner_texts()
        assert scores == [f"{score:.3f}" for score in wanted["score"]]
    recommender = Recommender.load(run)
    (reason,) = recommender.explain(history, [recommender.recommend([history], k=1)["item_id"][0]])
    row = page.locator(".answer").first.locator(".row-line").first
    said = row.locator(".bar").get_attribute("aria-label")
    assert said == ", ".join(f"{name} {share:+.2f}" for name, share in reason.shares.items() if share)
    assert explorer.items.title_of(reason.match) in row.inner_text()
    widths = row.locator(".bar > div").evaluate_all("parts => parts.map(part => part.offsetWidth)")
    shares = [abs(share) for share in reason.shares.values() if share]
    assert [width / sum(widths) for width in widths] == pytest.approx([one / sum(shares) for one in shares], abs=0.05)

    page.get_by_role("button", name="remove from the history: Borealis soap no 9").click()
    wanted = recommender.recommend([["i0029"]], k=10)["item_id"]
    until(lambda: titles(page), [explorer.items.title_of(item) for item in wanted])
    page.get_by_text("Clear", exact=True).click()
    page.get_by_text("Empty: click items").wait_for()


def test_where_the_held_out_item_of_a_user_ranks_by_each_model(opened, run):
    page, explorer = opened(), Explorer([run, run / "baselines" / "other"])
    session = explorer.session()
    for group in ("head", "tail"):
        session.user = explorer.users.draw(group, 0)
        session.history = session.user.history
        page.locator(".users .act", has_text=f"{group} (").click()
        wanted = [f"{card.rank.place}" for card in explorer.cards(session)]
        page.locator(".held-out", has_text=f"user {session.user.user},").wait_for()
        assert page.locator(".rank .number").all_inner_texts() == wanted
        assert page.locator(".history .pick").count() == len(session.user.history)
    page.get_by_text("leave its items out").click()
    session.exclude_seen = True
    until(page.locator(".rank .number").all_inner_texts, [f"{card.rank.place}" for card in explorer.cards(session)])
    assert session.user.history and not page.locator(".answer").first.locator(".tag.grey").count()
    page.get_by_label("user id").fill("nobody")
    page.get_by_label("user id").press("Enter")
    page.get_by_text("expected a user of the test split").wait_for()


def test_a_slider_moves_the_list_and_the_validation_figures(opened, run):
    page, explorer = opened(), Explorer([run])
    add(page, "no 9", "Borealis soap no 9")
    before = titles(page)
    page.get_by_text("Tune", exact=True).click()
    page.locator(".figures td").first.wait_for()
    slider = page.get_by_label("weight of content", exact=True).locator("[tabindex]")
    for _ in range(10):
        slider.press("ArrowRight")
    page.get_by_text("with changed weights").wait_for()
    until(lambda: titles(page) != before, True)
    weights, value = explorer.runs[0].model.weights(False), page.locator(".slider-head", has_text="content").first
    until(lambda: (value.inner_text(), time.sleep(1))[0] == value.inner_text(), True)  # all ten have arrived
    weights["content"] = float(value.locator("span").nth(1).inner_text())
    assert weights["content"] > 2
    figures = explorer.runs[0].figures(weights, False)
    last = page.locator(".figures tr").last.locator("td")
    until(lambda: last.nth(1).inner_text(), f"{figures.overall:.4f}")
    assert last.nth(2).inner_text() == f"{figures.hr:.4f}"
    assert "150 validation users" in page.locator(".weights").inner_text().replace("151", "150")

    trade = page.get_by_label("head/tail trade-off").locator("[tabindex]")
    for _ in range(6):
        trade.press("ArrowRight")
    page.get_by_text("at most").wait_for()
    page.get_by_text("Calibrated weights").click()
    until(lambda: titles(page), before)
    assert not page.get_by_text("with changed weights").count()


def test_no_script_of_a_title_an_id_or_a_user_runs(opened, run):
    page = opened()
    for text in ("img src", "lipstick", "svg", "7*7", "razor", "Dune"):
        search(page, text)
        page.wait_for_timeout(300)
    add(page, HOSTILE_ID)
    add(page, "javascript:")
    page.get_by_label("user id").fill("<img src=x onerror=window.ran=2>")
    page.get_by_label("user id").press("Enter")
    page.locator(".held-out", has_text="user <img src=x onerror=window.ran=2>").wait_for()
    assert page.locator(".held-out .what").inner_text() == HOSTILE_ID  # shown as it is
    assert any("](javascript:" in text for text in page.locator(".history .what").all_inner_texts())
    assert page.evaluate("window.ran") is None
    assert page.locator("img[src=x], svg[onload], .what a, .what b, .what strong").count() == 0


def test_a_phone_shows_everything_without_scrolling_sideways(opened):
    page = opened(PHONE)
    page.locator(".users .act", has_text="tail (").click()
    page.locator(".held-out").wait_for()
    page.get_by_text("Tune", exact=True).click()
    page.locator(".figures td").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    narrow = page.evaluate("[...document.querySelectorAll('.act, .pick')].filter(e => e.offsetHeight < 24).length")
    assert narrow == 0  # can be hit with a finger


def test_pages_of_other_sites_get_nothing(address):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20)
        assert refused.value.code == 403


@pytest.mark.skipif(
    "LLMCFSR_SCREENSHOTS" not in os.environ, reason="LLMCFSR_SCREENSHOTS names no demo run (make screenshots)"
)
def test_screenshots_of_the_demo(browser):
    """Writes docs/images/explore-*.png from the demo's run."""
    from PIL import Image  # matplotlib brings it

    demo, images = Path(os.environ["LLMCFSR_SCREENSHOTS"]), Path(__file__).parents[2] / "docs" / "images"
    images.mkdir(exist_ok=True)
    with exploring(demo, demo / "baselines" / "sasrec") as address:
        for name, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
            page = browser.new_context(viewport=viewport).new_page()
            page.set_default_timeout(120_000)
            page.goto(address)
            page.wait_for_selector(".answer .row-line")
            search(page, "shampoo")
            page.locator(".users .act", has_text="tail (").click()
            page.locator(".held-out").wait_for()
            if name == "desktop":
                page.get_by_text("Tune", exact=True).click()
                page.locator(".figures td").first.wait_for()
                trade = page.get_by_label("head/tail trade-off").locator("[tabindex]")
                for _ in range(5):
                    trade.press("ArrowRight")
                page.get_by_text("with changed weights").wait_for()
                page.get_by_text("at most").wait_for()
                page.locator("h2").first.click()  # nothing has the focus
            else:
                page.locator(".held-out").scroll_into_view_if_needed()
                page.evaluate("window.scrollTo(0, document.querySelector('.held-out').offsetTop - 12)")
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)
            path = images / f"explore-{name}.png"
            page.screenshot(path=path, full_page=name == "desktop")
            with Image.open(path) as picture:
                picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
            assert path.stat().st_size < 200_000
