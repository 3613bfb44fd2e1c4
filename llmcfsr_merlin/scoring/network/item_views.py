"""Both views of an item: a trainable collaborative table and an adapter over frozen semantic vectors."""

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.dataset.names import FIRST_ITEM, NULL

if TYPE_CHECKING:
    from llmcfsr_merlin.scoring.scorer import ItemVectors

_CHUNK = 65536  # vectors in double precision at a time
MASK = NULL  # mask token that bert4rec reads in place of an item to predict: no history contains it


class ItemViews(nn.Module):
    """Encoded item ids to their d-dimensional views.

    collaborative: table [V, d], scaled per item by n / (n + k) (n: training count, k: `cold_shrinkage`), so that the
    row of an unseen item neither scores nor receives a gradient. semantic: linear adapter D -> D/2 -> d without
    activation over the frozen vectors (LLM-ESR, arXiv 2405.20646), which are whitened first (AlphaFuse). null_space:
    the d/2 leading whitened directions, frozen, beside d/2 trainable ones that start at zero (AlphaFuse, SIGIR 2025).
    """

    collaborative: nn.Embedding | None
    semantic: nn.Sequential | None
    null_space: nn.Embedding | None
    confidence: Tensor
    log_share: Tensor
    center: Tensor
    whitening: Tensor
    leading: Tensor

    def __init__(self, config: NetworkSettings, n_items: int, vectors: "ItemVectors"):
        """vectors: holds `semantic`, the frozen vectors float [V, D], or None there."""
        super().__init__()
        semantic_dimension = None if vectors.semantic is None else vectors.semantic.shape[1]
        self.vectors = vectors
        self.item_dropout = config.item_dropout
        self.collaborative = self.semantic = self.null_space = None
        if "collaborative" in config.views:
            self.collaborative = nn.Embedding(n_items, config.hidden)
            nn.init.normal_(self.collaborative.weight, std=1 / math.sqrt(config.hidden))
            self.register_buffer("confidence", torch.ones(n_items))
        # Only for training: log of each item's share of the training interactions, for in-batch negatives.
        self.register_buffer("log_share", torch.zeros(n_items), persistent=False)
        if "semantic" in config.views:
            if semantic_dimension is None:
                raise ValueError("the semantic view needs item vectors")
            self.register_buffer("center", torch.zeros(semantic_dimension))
            self.register_buffer("whitening", torch.eye(semantic_dimension))
            middle = max(semantic_dimension // 2, config.hidden)
            self.semantic = nn.Sequential(nn.Linear(semantic_dimension, middle), nn.Linear(middle, config.hidden))
        if "null_space" in config.views:
            half = config.hidden // 2
            self.register_buffer("leading", torch.zeros(n_items, half))
            self.null_space = nn.Embedding(n_items, config.hidden - half)
            nn.init.zeros_(self.null_space.weight)

    @torch.no_grad()
    def initialise(self, config: NetworkSettings, train_counts: Tensor) -> None:
        """Initialise what depends on the training counts int64 [V] and the vectors: confidence, whitening, PCA."""
        vectors = self.vectors.semantic
        seen = train_counts.float()
        self.log_share.copy_((seen.clamp_min(1) / seen.sum().clamp_min(1)).log())
        if self.collaborative is not None and config.cold_shrinkage is not None:
            # k = 0 still switches unseen items off: their rows are never trained.
            self.confidence.copy_(torch.where(seen > 0, seen / (seen + config.cold_shrinkage), torch.zeros(())))
            self.confidence[MASK] = 1
        if vectors is None or not config.reads:
            return
        parts = vectors[FIRST_ITEM:].split(_CHUNK)
        real = len(vectors) - FIRST_ITEM
        center = sum(part.double().sum(0) for part in parts) / real
        covariance = sum((part - center).T @ (part - center) for part in parts) / max(real - 1, 1)
        # Eigenvalues far below the largest are noise that whitening would amplify.
        variance, basis = torch.linalg.eigh(covariance)
        scale = variance.clamp_min(variance.max() * 1e-3).rsqrt()
        whitening = basis * scale
        if self.semantic is not None and config.whiten:
            self.center.copy_(center)
            self.whitening.copy_(whitening / math.sqrt(vectors.shape[1]))
        if self.null_space is not None:
            half = min(self.leading.shape[1], vectors.shape[1])
            leading = whitening[:, -half:].flip(1) / math.sqrt(config.hidden)
            self.leading[FIRST_ITEM:, :half] = torch.cat([((part - center) @ leading).float() for part in parts])
        if self.collaborative is not None and config.pca_init:
            hidden = self.collaborative.embedding_dim
            top = basis[:, -hidden:].flip(1)
            scores = torch.cat([((part - center) @ top).float() for part in parts])
            if config.pca_scaled:
                scores = scores / scores.std(0).clamp_min(1e-12) / math.sqrt(hidden)
            self.collaborative.weight[FIRST_ITEM:, : scores.shape[1]] = scores

    def forward(self, items: Tensor, adapter: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        """items int64 [...] -> one float tensor [..., d] per view, collaborative before semantic.

        adapter: of adapter(), if weights stay as they are: for a few items computing it takes longer than using it.

        In training, `item_dropout` of the items lose their collaborative row for this call, in every place where they
        occur, so that the semantic view learns to stand alone.
        """
        views = []
        if self.collaborative is not None:
            confidence = self.confidence
            if self.training and self.item_dropout:
                confidence = confidence * (torch.rand_like(confidence) >= self.item_dropout)
            views.append(self.collaborative(items) * confidence[items].unsqueeze(-1))
        adapter = self.adapter() if adapter is None else adapter
        if adapter is not None and self.vectors.semantic is not None:
            views.append(F.linear(self.vectors.semantic[items], *adapter))
        if self.null_space is not None:
            views.append(torch.cat([self.leading[items], self.null_space(items)], dim=-1))
        return views

    def adapter(self) -> tuple[Tensor, Tensor] | None:
        """Weight [d, D] and bias [d] of the semantic views of vectors [..., D], whitened as (v - center) @ whitening.

        Whitening and two linear maps without activation are one map, D x d: cheaper per item, and no whitened
        table is kept. None without a semantic view.
        """
        if self.semantic is None:
            return None
        first, second = cast(tuple[nn.Linear, nn.Linear], tuple(self.semantic))
        with torch.autocast(self.center.device.type, enabled=False):  # three products in a row would round three times
            weight = second.weight @ first.weight @ self.whitening.T
            return weight, second.weight @ first.bias + second.bias - weight @ self.center
