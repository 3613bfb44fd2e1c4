"""The parts of the page: elements with text. Nothing from data is HTML or Markdown: labels escape what they show."""

from collections.abc import Callable, Sequence

from nicegui import ui

from llmcfsr_merlin.explore.answers import Rank
from llmcfsr_merlin.explore.explorer import Card, Row
from llmcfsr_merlin.explore.titled_items import FoundItem

# Of the parts of a score, in order; they differ for colour-blind eyes by lightness too.
_COLOURS = ("#0f766e", "#f59e0b", "#2563eb", "#db2777", "#84cc16", "#7c3aed", "#94a3b8", "#ea580c", "#0891b2")


def box(classes: str, tag: str = "div") -> ui.element:
    return ui.element(tag).classes(classes)


def text(value: str, classes: str = "", tag: str = "span") -> ui.label:
    """A text in an element of its own."""
    label = ui.label(value).classes(classes)
    label.tag = tag
    return label


def heading(value: str) -> None:
    text(value, tag="h2")


def act(value: str, clicked: Callable, enabled: bool = True) -> ui.element:
    """A button."""
    with box("act", "button") as button:
        text(value)
    if not enabled:
        button.props["disabled"] = True
    return button.on("click", clicked)


def pick(value: str, note: str, said: str, clicked: Callable) -> None:
    """A line that can be clicked. said: what a click does, for screen readers."""
    with box("pick", "button").on("click", clicked) as line:
        line.props["aria-label"] = f"{said}: {value}"
        text(value, "what")
        if note:
            text(note, "soft")


def found_items(found: Sequence[FoundItem], add: Callable[[str], Callable]) -> None:
    for one in found:
        note = "" if one.interactions is None else f"{one.interactions:,}×"
        pick(one.title or one.item, note, "add to the history", add(one.item))


def colours(cards: Sequence[Card]) -> dict[str, str]:
    """A colour for each feature that adds to a score on the page, the same in all lists."""
    names = dict.fromkeys(part.feature for card in cards for row in card.rows for part in row.bar if part.share)
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}


def card(one: Card, of_feature: dict[str, str], empty: bool) -> None:
    """A model's list."""
    with box("panel answer"):
        heading(one.label)
        if one.failure:
            text(one.failure, "down", "p")
            return
        if one.fallback:
            said = "No history yet" if empty else "No item of the history is known"
            text(f"{said}: the most popular items, by their share of all interactions.", "soft", "p")
        elif one.unknown:
            text(f"{one.unknown} item(s) of the history are unknown to this model.", "soft", "p")
        if one.changed:
            text("with changed weights", "tag grey")
        shown = {part.feature for row in one.rows for part in row.bar if part.share}
        with box("legend"):
            for name in (name for name in of_feature if name in shown):
                with box(""):
                    box("dot", "span").style(f"background: {of_feature[name]}")
                    text(name)
        for place, row in enumerate(one.rows, 1):
            _row(place, row, of_feature)


def _row(place: int, row: Row, of_feature: dict[str, str]) -> None:
    with box("row-line held" if row.held_out else "row-line"):
        with box("row-head"):
            text(str(place), "place")
            text(row.title, "what").props["title"] = row.item
            if row.held_out:
                text("held out", "tag green")
            elif row.in_history:
                text("in the history", "tag grey")
            text(f"{row.score:.3f}", "score")
        parts = [part for part in row.bar if part.share]
        with box("under"):
            if parts:
                said = ", ".join(f"{part.feature} {part.share:+.2f}" for part in parts)
                with box("bar") as bar:
                    bar.props["role"], bar.props["aria-label"], bar.props["title"] = "img", said, said
                    for part in parts:
                        style = f"width: {part.width:.2f}%; background-color: {of_feature[part.feature]}"
                        box("less" if part.share < 0 else "more").style(style)
            if row.match:
                text(f"like {row.match}", "soft", "div")


def ranks(cards: Sequence[Card]) -> None:
    """Where the held-out item ranks, side by side."""
    places = [card.rank.place for card in cards if card.rank and card.rank.place]
    with box("ranks"):
        for one in cards:
            best = bool(places) and one.rank is not None and one.rank.place == min(places)
            with box("rank best" if best else "rank"):
                text(one.label, "soft", "div")
                text(rank_text(one.rank), "number", "div")


def rank_text(rank: Rank | None) -> str:
    if rank is None:
        return "–"
    if rank.place is not None:
        return f"{rank.place:,}"
    return "unknown" if rank.asked is None else f"> {rank.asked:,}"
