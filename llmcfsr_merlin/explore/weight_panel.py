"""Sliders for a run's score weights and the head/tail trade-off, and the validation figures that go with them."""

import asyncio
from collections.abc import Callable
from typing import Any

from nicegui import ui

from llmcfsr_merlin.explore.explorer import OpenedRun, Session
from llmcfsr_merlin.explore.live_validation import TOLERANCES, Figures
from llmcfsr_merlin.explore.page_parts import act, box, heading, text

_COLUMNS = {"NDCG@10": "overall", "HR@10": "hr", "head NDCG@10": "head", "tail NDCG@10": "tail"}


class WeightPanel:
    """The panel of one run at a time. changed: called after weights of the session were changed."""

    def __init__(self, runs: list[OpenedRun], session: Session, changed: Callable):
        self._runs, self._session, self._changed = runs, session, changed
        self._run = runs[0]
        self._sliders: dict[str, tuple[ui.slider, ui.label]] = {}
        self._asked = 0
        with box("panel weights"):
            heading("Score weights")
            text(
                "A score is the sum of its parts, each times a weight. Move one, or trade the head for the tail: the "
                "lists above follow, and so do the figures of validation users.", "soft", "p",
            )  # fmt: skip
            if len(runs) > 1:
                labels = [one.model.label for one in runs]
                ui.select(labels, value=labels[0], label="model", on_change=self._chosen).props("dense outlined")
            self._body = box("body")
            with self._body:
                act("Tune", self.open)

    async def _chosen(self, event: Any) -> None:
        self._run = next(one for one in self._runs if one.model.label == event.value)
        await self.open()

    async def open(self) -> None:
        """Show the sliders; scoring the sample of validation users takes seconds at the first time."""
        self._sliders.clear()
        self._body.clear()
        with self._body, box("soft waiting"):
            ui.spinner(size="sm")
            text(" scoring validation users ...")
        validation = await asyncio.to_thread(self._run.validation)
        self._body.clear()
        with self._body:
            with box("sliders"):
                for name, grid in zip(validation.features, validation.grids):
                    if grid:
                        self._slider(name, grid)
            with box("sliders"), box(""):
                with box("slider-head"):
                    text("head/tail trade-off: NDCG@10 given up for the tail")
                    self._given = text("")
                trade = ui.slider(
                    min=0, max=100 * TOLERANCES[-1], step=0.5, value=100 * self._run.config.train.tail_tolerance
                ).props("color=teal")
                trade.props["aria-label"] = "head/tail trade-off"
                trade.on("update:model-value", self._trade, throttle=0.2, leading_events=False)
                self._trade_slider = trade
            with box("buttons"):
                act("Calibrated weights", self._reset)
            users = f"{validation.users:,} validation users, {validation.tail_users:,} of them with a tail item"
            self._note = text(users, "soft", "p")
            self._table = box("figures", "table")
        await self.show()

    def _slider(self, name: str, grid: tuple[float, ...]) -> None:
        low, high = min(0.0, *grid), max(grid)
        with box(""):
            with box("slider-head"):
                text(name)
                said = text("")
            slider = ui.slider(min=low, max=high, step=(high - low) / 60 or 0.1).props("color=teal")
            slider.props["aria-label"] = f"weight of {name}"
            slider.on("update:model-value", self._moved(name), throttle=0.1, leading_events=False)
            self._sliders[name] = (slider, said)

    def _moved(self, name: str) -> Callable:
        async def moved(event: Any) -> None:
            self._session.weights[self._run.model.label] = self._weights() | {name: float(event.args)}
            await self.show()
            await self._changed()

        return moved

    async def _trade(self, event: Any) -> None:
        tolerance = float(event.args) / 100
        self._given.set_text("searching ...")
        weights = await asyncio.to_thread(self._run.trade_off, self._session.exclude_seen, tolerance)
        if self._trade_slider.value != event.args:  # it has been moved on meanwhile
            return
        self._session.weights[self._run.model.label] = weights
        self._given.set_text(f"at most {tolerance:.1%}")
        await self.show(moved=False)
        await self._changed()

    async def _reset(self) -> None:
        self._session.weights.pop(self._run.model.label, None)
        await self.show()
        await self._changed()

    def _weights(self) -> dict[str, float]:
        calibrated = self._run.model.weights(self._session.exclude_seen)
        return self._session.weights.get(self._run.model.label) or calibrated

    async def show(self, moved: bool = True) -> None:
        """Set sliders and figures to the session's weights. moved: not by the trade-off."""
        if not self._sliders:
            return
        self._asked += 1
        mine, weights = self._asked, self._weights()
        for name, (slider, said) in self._sliders.items():
            if name in weights:
                slider.set_value(weights[name])
                said.set_text(f"{weights[name]:.2f}")
        if moved:
            self._given.set_text("")
        calibrated = self._run.model.weights(self._session.exclude_seen)
        before, now = [
            await asyncio.to_thread(self._run.figures, one, self._session.exclude_seen) for one in (calibrated, weights)
        ]
        if mine == self._asked:
            self._figures(before, now)

    def _figures(self, before: Figures, now: Figures) -> None:
        self._table.clear()
        with self._table:
            with box("", "tr"):
                for title in ("", *_COLUMNS):
                    text(title, tag="th")
            for label, figures in (("calibrated", before), ("now", now)):
                with box("", "tr"):
                    text(label, tag="td")
                    for name in _COLUMNS.values():
                        value, old = getattr(figures, name), getattr(before, name)
                        style = "up" if value > old else "down" if value < old else ""
                        text("–" if value != value else f"{value:.4f}", style, "td")
