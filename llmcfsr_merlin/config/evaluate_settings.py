"""Section `evaluate`: ranking quality on the test items (stage `evaluate`)."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.config.section import Section


class EvaluateConfig(Section):
    """Ranking quality on the test items (stage `evaluate`)."""

    ks: tuple[int, ...] = Field((5, 10, 20), min_length=1)
    """Cut-offs K of HR@K and NDCG@K."""
    shown_ks: tuple[int, ...] = (10,)
    """Which of them the printed tables show; metrics.json and the JSON line have all."""
    protocols: tuple[Literal["full", "sampled"], ...] = ("full", "sampled")
    """full: rank the target among all items; sampled: among sampled_negatives."""
    sampled_negatives: int = Field(100, ge=1)
    """Negatives drawn per user, none of them in the user's sequence (protocol sampled)."""
    exclude_history: bool = False
    """History rule of the deployment: whether the items of a user's history are left out of what is recommended.
    Training selects epochs and score weights by it, the model records it, requests that say nothing of EXCLUDE_SEEN
    follow it, and both rules are measured, each with weights of its own. false: the scorer `repeats` learns from the
    log whether people return."""
    tail_item: int = Field(4, ge=1)
    """An item with fewer interactions is a tail item (papers: Yelp 13, Fashion 4, Beauty 4)."""
    tail_user: int = Field(9, ge=1)
    """A user with a shorter history is a tail user (papers: Yelp 12, Fashion 3, Beauty 9)."""
    popularity_from: Literal["train", "all"] = "train"
    """Counts that define tail items; the papers' code counts the users of all interactions, test included."""
    shuffle_test: bool = False
    """Rank a second time with each history in a random order (group shuffled_history): what a model loses by it is what
    it makes of the order (arXiv 2408.12008)."""
    baselines: tuple[str, ...] = ("popularity", "sasrec")
    """Model presets of pipelines/models that are evaluated beside the model."""
    batch_size: int = Field(256, ge=1)
    """Users ranked per batch."""
    seed: int = 42
    """Seed of the sampled negatives."""

    @property
    def history(self) -> str:
        """The history rule, masked or kept, that training chooses by, the tables begin with and requests follow
        (names.HISTORY_RULES)."""
        return "masked" if self.exclude_history else "kept"

    @model_validator(mode="after")
    def _measured(self) -> "EvaluateConfig":
        if missing := [k for k in self.shown_ks if k not in self.ks]:
            raise ValueError(f"expected shown_ks among ks ({', '.join(map(str, self.ks))}), found {missing[0]}")
        return self

    @field_validator("baselines")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in presets():
                raise ValueError(f"expected baselines out of {', '.join(presets())}, found {name}")
        return names
