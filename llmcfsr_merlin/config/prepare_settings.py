"""Section `prepare`: filters, ids, sequences and splits (stage `prepare`)."""

from typing import Literal

from pydantic import Field

from llmcfsr_merlin.config.section import Section


class PrepareConfig(Section):
    """Filters, ids, sequences and splits (stage `prepare`)."""

    filter: Literal["k_core", "one_pass", "none"] = "k_core"
    """k_core: to a fixed point; one_pass: the papers' single pass on raw counts; none: keep all."""
    min_user: int = Field(3, ge=1)
    """Fewest interactions of a user that is kept."""
    min_item: int = Field(3, ge=1)
    """Fewest interactions of an item that is kept."""
    min_sequence: int = Field(3, ge=3)
    """Shorter sequences are dropped after filtering: leave-one-out needs train, valid and test."""
    max_length: int = Field(50, ge=1)
    """Longest history that the model reads; older items are cut."""
    extend: str | None = None
    """Directory `prepare` of an earlier run to continue: its item codes stay, this run's log is a later day's."""
    ties: Literal["source", "shuffle"] = "source"
    """The order of a user's interactions at one time: that of the source, or shuffled by `seed`."""
    seed: int = Field(42, ge=0)
    """Of the order of ties (ties=shuffle)."""

    @property
    def tie_seed(self) -> int | None:
        """Of the order of equal times; None: that of the source."""
        return self.seed if self.ties == "shuffle" else None
