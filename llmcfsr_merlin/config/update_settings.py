"""Section `update`: a day's log on top of yesterday's run (`llmcfsr update`)."""

from typing import Literal

from pydantic import Field

from llmcfsr_merlin.config.section import Section


class UpdateConfig(Section):
    """A day's log on top of yesterday's run (`llmcfsr update`)."""

    epochs: int = Field(3, ge=1)
    """Epochs over the day's users and the replayed ones, from yesterday's weights."""
    learning_rate: float = Field(0.25, gt=0)
    """Peak learning rate, as a share of train.learning_rate."""
    replay: float = Field(1.0, ge=0)
    """Other users trained on beside those of the day, per user of the day: without them the model forgets."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the day's users whose interactions of the day are trained on tomorrow: half of them choose the epoch and
    the score weights, half decide whether the model may go out."""
    calibrate_from: int = Field(300, ge=1)
    """Held-out users that choose from which on they choose score weights too; with fewer, yesterday's weights stay."""
    min_item: int = Field(1, ge=1)
    """Interactions on the day that make an unknown item known; an item of the day's catalogue needs none."""
    max_loss: float = Field(0.05, ge=0, lt=1)
    """The gate: allowed relative loss of NDCG@10 against yesterday's model, on the held-out interactions. The model is
    stopped if its loss is beyond that and no matter of chance (95% interval of the paired difference)."""
    check_served: bool = True
    """The gate: a tritonserver of its own must recommend what the library recommends before the model goes out."""
    retire: Literal["never", "missing"] = "never"
    """missing: items that the day's catalogue (data.items) does not name are no longer recommended."""
    retire_days: int | None = Field(None, ge=1)
    """Items without an interaction for so many days before the newest one are no longer recommended; None: never."""
