"""The page of one visitor: widgets that pass clicks to a Session and show what the Explorer makes of it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nicegui import ui

from llmcfsr_merlin.explore.explorer import Explorer
from llmcfsr_merlin.explore.held_out_users import GROUPS, HeldOutUser
from llmcfsr_merlin.explore.page_parts import act, box, card, colours, found_items, heading, pick, ranks, text
from llmcfsr_merlin.explore.weight_panel import WeightPanel
from llmcfsr_merlin.runtime.errors import InputError

_FOUND = 20  # items that a search shows
_HISTORY_TITLES = 200  # items of a history that are listed


class ExplorePage:
    """Built anew for each visitor, whose clicks nobody else sees."""

    def __init__(self, explorer: Explorer):
        self._explorer, self._session = explorer, explorer.session()
        self._asked = self._searched = 0
        self._drawn = dict.fromkeys(GROUPS, 0)
        self._weights: WeightPanel | None = None

    async def build(self) -> None:
        ui.add_css(Path(__file__).with_name("page.css"))
        explorer = self._explorer
        with box("top", "header"):
            text("explore", "name")
            text(" · ".join(model.label for model in explorer.models), "about")
        with box("layout", "main"):
            with box("column"):
                self._find_panel()
                self._history_panel()
                if explorer.users is not None:
                    self._users_panel()
            with box("column"):
                self._user_box = box("user-box")
                self._cards = box("cards")
                if tunable := [one for one in explorer.runs if one.tunable]:
                    self._weights = WeightPanel(tunable, self._session, self._changed)
        await self._search("")
        await self._changed()

    def _find_panel(self) -> None:
        with box("panel find"):
            heading("Find items")
            said = "part of a title, or an id"
            field = ui.input(placeholder=said).props("outlined dense clearable debounce=150").classes("w-full")
            field.props["aria-label"] = said
            field.on_value_change(lambda event: self._search(event.value or ""))
            self._found = box("list")

    def _history_panel(self) -> None:
        with box("panel history"):
            heading("History")
            self._history = box("list")
            switch = ui.switch("leave its items out", value=self._session.exclude_seen, on_change=self._rule_changed)
            switch.props("dense").classes("soft")
            with box("buttons").style("margin-top: 10px"):
                act("Clear", self._clear)

    def _users_panel(self) -> None:
        assert self._explorer.users is not None
        with box("panel users"):
            heading("Test users")
            text(
                "Somebody whose last item was held out, by how well training knew that item. Again for the next.",
                "soft",
            )
            with box("buttons"):
                for group, count in self._explorer.users.counts.items():
                    act(f"{group} ({count:,})", self._draw(group), enabled=bool(count))
            field = ui.input(placeholder="user id, Enter").props("outlined dense").classes("w-full")
            field.props["aria-label"] = "user id"
            field.on("keydown.enter", lambda: self._find_user(field.value or ""))

    async def _search(self, asked: str) -> None:
        self._searched += 1
        mine = self._searched
        try:
            found = await asyncio.to_thread(self._explorer.items.search, asked[:200], _FOUND)
        except InputError as error:
            ui.notify(str(error), type="negative")
            return
        if mine != self._searched:  # another letter was typed meanwhile
            return
        self._found.clear()
        with self._found:
            found_items(found, self._add)
            if not found:
                text("No title has all these words.", "soft")

    def _add(self, item: str) -> Callable:
        async def add() -> None:
            self._session.history.append(item)
            await self._changed()

        return add

    def _drop(self, place: int) -> Callable:
        async def drop() -> None:
            del self._session.history[place]
            await self._changed()

        return drop

    async def _clear(self) -> None:
        self._session.history, self._session.user = [], None
        await self._changed()

    async def _rule_changed(self, event: Any) -> None:
        self._session.exclude_seen = bool(event.value)
        self._session.weights.clear()  # each history rule has its own
        if self._weights is not None:
            await self._weights.show()
        await self._changed()

    def _draw(self, group: str) -> Callable:
        async def draw() -> None:
            assert self._explorer.users is not None
            number, self._drawn[group] = self._drawn[group], self._drawn[group] + 1
            await self._show_user(self._explorer.users.draw(group, number))

        return draw

    async def _find_user(self, user: str) -> None:
        assert self._explorer.users is not None
        try:
            found = await asyncio.to_thread(self._explorer.users.find, user)
        except InputError as error:
            ui.notify(str(error), type="negative")
            return
        await self._show_user(found)

    async def _show_user(self, user: HeldOutUser) -> None:
        self._session.user, self._session.history = user, list(user.history)
        await self._changed()

    async def _changed(self) -> None:
        """Show what the session has become; an answer that was overtaken by another click is dropped."""
        self._asked += 1
        mine, session = self._asked, self._session
        asked = replace(session, history=list(session.history), weights=dict(session.weights))
        cards = await asyncio.to_thread(self._explorer.cards, asked)
        titles = await asyncio.to_thread(
            lambda: [self._explorer.items.title_of(item) for item in asked.history[-_HISTORY_TITLES:]]
        )
        user = asked.user
        target = ""
        if user is not None:
            target = await asyncio.to_thread(self._explorer.items.title_of, user.target)
        if mine != self._asked:
            return
        self._show_history(titles, len(asked.history))
        of_feature = colours(cards)
        self._cards.clear()
        with self._cards:
            for one in cards:
                card(one, of_feature, empty=not asked.history)
        self._user_box.clear()
        if user is not None:
            with self._user_box, box("panel held-out"):
                heading("Where the held-out item ranks")
                trained = f"{user.trained:,} interactions in training: {user.group}"
                text(target, "what", "div")
                text(f"user {user.user}, {len(user.history):,} items before it; the item has {trained}", "soft", "div")
                ranks(cards)

    def _show_history(self, titles: list[str], length: int) -> None:
        self._history.clear()
        with self._history:
            if length > len(titles):
                text(f"{length - len(titles):,} earlier items", "soft")
            for place, title in enumerate(titles, length - len(titles)):
                pick(title, "×", "remove from the history", self._drop(place))
            if not titles:
                text("Empty: click items above to build one, oldest first.", "soft")
