"""Section `model`: a name and its scorers."""

import difflib
from typing import Any

from pydantic import Field, ValidationError, field_validator

from llmcfsr_merlin.config.explain import explain
from llmcfsr_merlin.config.scorer_settings import SCORERS, ContentSettings, NetworkSettings
from llmcfsr_merlin.config.section import NAME, Section
from llmcfsr_merlin.runtime.extensions import load_class


class ModelConfig(Section):
    """A model: a name, and the scorers whose weighted sum is the score. Absent means off."""

    name: str = Field("sasrec", pattern=NAME, max_length=100)
    """Name in the result tables; the built-in presets are in pipelines/models."""
    scorers: dict[str, Any] = Field(default_factory=lambda: {"network": {}}, validate_default=True)
    """Scorer -> its settings, in order: the first has weight 1, the score weights of the others are calibrated on
    validation. Your own scorer is named `module:Class`; `null` removes one from a preset."""

    @field_validator("scorers")
    @classmethod
    def _known(cls, scorers: dict[str, Any]) -> dict[str, Section]:
        found = {name: _scorer_settings(name, value) for name, value in scorers.items() if value is not None}
        if not found:
            raise ValueError(f"expected at least one scorer out of {', '.join(SCORERS)} or module:Class, found none")
        return found

    def trained_by(self) -> dict:
        """The settings that identify a training, without those that have the value of before they were settings:
        trainings from before stay valid.
        """
        settings = self.model_dump()
        of_before = (
            ("transitions", "directed", True), ("transitions", "score_history", True),
            ("content", "match_itself", True), ("popularity", "decay", 1),
        )  # fmt: skip
        for scorer, name, value in of_before:
            if settings["scorers"].get(scorer, {}).get(name) == value:
                del settings["scorers"][scorer][name]
        return settings

    @property
    def extensions(self) -> tuple[str, ...]:
        """Names from outside this package, `module:Class`."""
        backbone = (self.network.backbone,) if self.network else ()
        return tuple(name for name in (*self.scorers, *backbone) if ":" in name)

    @property
    def network(self) -> NetworkSettings | None:
        """Settings of the scorer `network`; None if the model has no trained network."""
        return self.scorers.get("network")

    @property
    def lexical_share(self) -> float:
        """Share of the lexical vectors in the cosine of two items' texts, for every scorer that compares them."""
        own = (one.lexical_share for one in self.scorers.values() if hasattr(one, "lexical_share"))
        return next(own, ContentSettings().lexical_share)

    @property
    def reads(self) -> tuple[str, ...]:
        """Item vectors of stage embed that its scorers read: semantic, lexical."""
        return tuple(dict.fromkeys(name for one in self.scorers.values() for name in getattr(one, "reads", ())))


def _scorer_settings(name: str, value: Any) -> Section:
    if isinstance(value, Section):
        return value
    if name in SCORERS or ":" in name:
        kind = SCORERS[name] if name in SCORERS else load_class(name).Settings
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise ValueError(explain(error, kind, f"{name}.")) from error
    close = difflib.get_close_matches(name, SCORERS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(SCORERS)}, or module:Class"
    raise ValueError(f"unknown scorer {name} ({hint})")
