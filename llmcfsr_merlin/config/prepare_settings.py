"""Section `prepare`: filters, ids, sequences and splits (stage `prepare`)."""

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from llmcfsr_merlin.config.section import Section


class PrepareConfig(Section):
    """Filters, ids, sequences and splits (stage `prepare`)."""

    filter: Literal["k_core", "one_pass", "none"] = "k_core"
    """k_core: iterate to a fixed point; one_pass: the papers' single pass on raw counts; none: keep all."""
    min_user: int = Field(3, ge=1)
    """Minimum interactions per user."""
    min_item: int = Field(3, ge=1)
    """Minimum interactions per item."""
    min_sequence: int = Field(3, ge=3)
    """Shorter sequences are dropped after filtering: leave-one-out needs train, valid and test. Not with
    filter_by=train."""
    max_length: int = Field(50, ge=1)
    """Longest history that the model reads; older items are dropped."""
    extend: str | None = None
    """Directory `prepare` of an earlier run to continue: its encoded item ids stay, this run's log is a later day's."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """leave_one_out: hold out each user's last two items; temporal: cut all users at the same two times."""
    valid_from: date | None = None
    """split=temporal: first day of validation (YYYY-MM-DD, UTC); None: by valid_quantile."""
    test_from: date | None = None
    """split=temporal: first day of test (YYYY-MM-DD, UTC), the end of validation; None: by test_quantile."""
    valid_quantile: float = Field(0.8, gt=0, lt=1)
    """split=temporal: validation begins at this quantile of the times of all interactions."""
    test_quantile: float = Field(0.9, gt=0, lt=1)
    """split=temporal: test begins at this quantile of the times of all interactions."""
    targets: Literal["last", "first", "all"] = "last"
    """split=temporal: which of a user's interactions in validation, and in test, are targets."""
    filter_by: Literal["train", "log"] = "train"
    """split=temporal: what the filters count. train: interactions before validation; users and items that have none
    there stay. log: all, so that who is kept also depends on what happened after the cut."""
    ties: Literal["source", "shuffle"] = "source"
    """Order of a user's interactions with equal times: as in the source, or shuffled by `seed`."""
    seed: int = Field(42, ge=0)
    """Seed of the order of ties (ties=shuffle)."""

    @model_validator(mode="after")
    def _consistent(self) -> "PrepareConfig":
        if self.split == "leave_one_out":
            for name in ("valid_from", "test_from"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs split=temporal, found split=leave_one_out")
            return self
        if self.extend:
            raise ValueError(
                "extend continues a leave-one-out run, found split=temporal: prepare the whole log again instead"
            )
        if self.valid_from and self.test_from and self.valid_from >= self.test_from:
            raise ValueError(f"valid_from ({self.valid_from}) must be before test_from ({self.test_from})")
        if not (self.valid_from or self.test_from) and self.valid_quantile >= self.test_quantile:
            raise ValueError(
                f"valid_quantile ({self.valid_quantile}) must be below test_quantile ({self.test_quantile})"
            )
        return self

    @property
    def filters_train(self) -> bool:
        """Whether the filters count the interactions before validation alone."""
        return self.split == "temporal" and self.filter_by == "train"

    @property
    def tie_seed(self) -> int | None:
        """Seed of the order of equal times; None: as in the source."""
        return self.seed if self.ties == "shuffle" else None
