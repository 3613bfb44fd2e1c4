"""Sections `model.scorers.<name>`: one class per scorer."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llmcfsr_merlin.config.section import Section, known_or_own

BACKBONES = ("sasrec", "sasrec_original", "sasrec_post_norm", "bert4rec", "gru4rec", "bsarec", "caser", "emkd")


class NetworkSettings(Section):
    """The scorer `network`: plain SASRec, BERT4Rec or GRU4Rec by default; further views and fusion levels are
    settings."""

    backbone: str = "sasrec"
    """sasrec: causal attention, next-item training; sasrec_original: the same in the block of its authors' code (each
    half adds to its normalised input, dropout of attention weights); sasrec_post_norm: in BERT's block (post-norm,
    GELU, feed-forward 4d, N(0, .02) init); bert4rec: bidirectional attention, masked training; gru4rec: GRU; bsarec: a
    frequency filter beside attention, needs train.samples=prefixes; caser: convolutions over the latest five items
    (half of hidden) and a user factor of the whole history (the other half), needs layers=1 and
    train.samples=prefixes; emkd: two masked encoders of half of hidden each, whose scores are added; or `module:Class`
    of your own block."""
    views: tuple[Literal["collaborative", "semantic", "null_space"], ...] = ("collaborative",)
    """null_space (alone): whitened leading directions of the vectors, frozen, beside trainable ones (AlphaFuse)."""
    hidden: int = Field(64, ge=4)
    """Dimension of the views and of the user state."""
    layers: int = Field(2, ge=1)
    """Blocks of the encoder."""
    heads: int = Field(2, ge=1)
    """Attention heads; hidden must be a multiple."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout rate."""
    positions: Literal["from_start", "from_end"] = "from_start"
    """from_end: the latest item of a history always has the last position, as in code that pads on the left (bsarec
    always does)."""
    initialisation: Literal["default", "xavier"] = "default"
    """xavier: every matrix of the network starts at Xavier's normal distribution, the item table as well unless it
    starts at the vectors (code that builds on pmixer's SASRec: MELT, LLM-ESR)."""
    prior_items: int = Field(0, ge=0)
    """Most items that are put before a history shorter than prior_length, one after another the best by a second
    network of the same kind that reads backwards (ASReP; needs train.pretrain=reversed); 0: none."""
    prior_length: int = Field(18, ge=1)
    """Length to which prior_items extend a history."""
    cross_attention: Literal["residual", "replace"] = "residual"
    """residual: a view adds what it attends to in the other; replace: the output replaces the view, with two heads
    (LLM-ESR)."""
    fuse_embedding: bool = False
    """Cross-attention between the views before the encoder."""
    fuse_sequence: bool = False
    """Cross-attention between the views between the encoder's blocks."""
    fuse_prediction: bool = False
    """Cross-attention between the views of the user state and of each candidate."""
    freeze_items: bool = False
    """The item table stays as train.pretrain left it (SAID); needs views=[collaborative]."""
    tail_maps: bool = False
    """Two linear maps that train.enhance_users and train.enhance_items train (MELT), one of which is added to the state
    of a short history; needs views=[collaborative]."""
    pca_init: bool = False
    """Initialise the collaborative table with the PCA of the semantic vectors."""
    pca_scaled: bool = True
    """Scale each principal component to the same variance, 1 / hidden; false: leave them as they are (LLM-ESR)."""
    whiten: bool = False
    """Whiten the vectors before the adapter, only for the semantic view: other scorers read them as stored."""
    cold_shrinkage: float | None = Field(None, ge=0)
    """k in the factor n / (n + k) of an item's collaborative view; 0: only unseen items lose it; None: off."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of items whose collaborative view is dropped per training step."""

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_or_own(name, BACKBONES)

    @model_validator(mode="after")
    def _consistent(self) -> "NetworkSettings":
        if self.views not in (("collaborative",), ("semantic",), ("null_space",), ("collaborative", "semantic")):
            raise ValueError(
                "views must be [collaborative, semantic], or one of collaborative, semantic, null_space, "
                f"found {list(self.views)}"
            )
        for name in ("tail_maps", "freeze_items"):
            if getattr(self, name) and self.views != ("collaborative",):
                raise ValueError(f"{name} needs views=[collaborative], found {list(self.views)}")
        if self.cross_attention == "replace" and self.hidden % 2:
            raise ValueError(f"hidden ({self.hidden}) must be even for cross_attention=replace, which has two heads")
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.backbone == "emkd" and (self.hidden % (2 * self.heads) or len(self.views) > 1):
            raise ValueError(
                f"backbone emkd has two encoders of one view: expected one view and hidden a multiple of 2 * heads, "
                f"found {list(self.views)} and {self.hidden}"
            )
        if self.backbone == "caser" and self.layers != 1:
            raise ValueError(f"backbone caser has one layer: set layers=1, found {self.layers}")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """Item vectors of stage embed that it reads."""
        return ("semantic",) if self.views != ("collaborative",) or self.pca_init else ()


class ContentSettings(Section):
    """The scorer `content`: the largest cosine similarity between a candidate's vector and those of the history."""

    lexical_share: float = Field(0.3, ge=0, le=1)
    """Share of the lexical vectors in the cosine, if stage embed wrote any."""
    match_itself: bool = False
    """An item of the history counts as its own closest item, as in models trained before this setting existed; false:
    it is compared with the other items of the history."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("semantic", "lexical") if self.lexical_share else ("semantic",)


class TransitionSettings(Section):
    """The scorer `transitions`: item-to-item transitions in the training sequences."""

    neighbours: int = Field(100, ge=1)
    """Neighbours kept per item, those with the largest weight."""
    directed: bool | None = None
    """Backward transitions count less than forward ones; false: both alike, for logs whose order is not time; None:
    alike if the training sequences mostly ascend by item id, as logs do that list one day's items by id."""
    score_history: bool = False
    """An item of the history is scored as any other, as in models trained before this setting existed; false: 0, since
    the user's own steps in training would speak for it."""


class RepeatSettings(Section):
    """The scorer `repeats`: whether the candidate is in the history, how often and how long ago."""


class PopularitySettings(Section):
    """The scorer `popularity`: training interactions per item."""

    decay: float = Field(1.0, gt=0, le=1)
    """What an interaction counts, times this for every later one of the same user: 1 counts all alike, 0.5 nearly the
    latest alone."""


class ItemKNNSettings(Section):
    """The scorer `item_knn`; the defaults were chosen on the validation items of amazon_beauty."""

    neighbours: int = Field(300, ge=1)
    """Neighbours kept per item, the most similar ones."""
    shrinkage: float = Field(10.0, ge=0)
    """Shrinkage: added to the denominator of the cosine, against chance similarity of rare items."""


class EASESettings(Section):
    """The scorer `ease`; the default was chosen on the validation items of amazon_beauty."""

    regularisation: float = Field(500.0, gt=0)
    """Ridge weight (lambda)."""
    memory_gb: float = Field(6.0, gt=0)
    """Memory limit; EASE needs 8 * (items + 3)^2 bytes, a larger catalogue is refused."""


SCORERS: dict[str, type[Section]] = {
    "network": NetworkSettings,
    "content": ContentSettings,
    "transitions": TransitionSettings,
    "repeats": RepeatSettings,
    "popularity": PopularitySettings,
    "item_knn": ItemKNNSettings,
    "ease": EASESettings,
}
