"""The network as Transformers4Rec blocks: body, task and metric for its Head, Model and Trainer.

Transformers4Rec's own input and transformer blocks read one view and cannot fuse two between the layers of an encoder,
so the body wraps our network; training comes from its Trainer. Its stock masking finds the same targets as ours in a
hundred times as long (a test compares), and its stock task returns [rows, items] logits, which its Trainer keeps:
ours returns the rank of the target.
"""

import llmcfsr_merlin.training.t4rec_compat  # noqa: F401

# isort: split
from typing import Any

import torch
import torchmetrics
import transformers4rec.torch as tr
from merlin.schema import Schema
from torch import Tensor, nn
from transformers4rec.torch.block.base import BlockBase

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, ROW
from llmcfsr_merlin.scoring.ndcg import ndcg_gains
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.ranker import select_top_k
from llmcfsr_merlin.training.objective import Auxiliary, Objective, predicted_positions
from llmcfsr_merlin.training.trainer import KnownParts
from llmcfsr_merlin.training.validation import ranks, split_last


class DualViewBody(BlockBase):
    """Holds the network's weights for the Head, and those of losses; passes the batch through, since the loss decides
    which states it needs."""

    def __init__(self, network: DualViewNetwork, schema: Schema, beside: nn.Module | None = None):
        super().__init__()
        self.network, self.schema, self.beside = network, schema, beside

    def forward(self, inputs: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return inputs

    def output_size(self) -> torch.Size:
        return torch.Size([-1, -1, self.network.width])

    forward_output_size = output_size


class NextItemTask(tr.NextItemPredictionTask):
    """Loss in training, the 0-based rank of the held-out item over the full catalogue in evaluation.

    exclude_history: the user's other items take no part in the ranking.
    """

    def __init__(self, network: DualViewNetwork, objective: Objective, exclude_history: bool = False):
        super().__init__(metrics=[RankMetric()])
        self._network, self._objective = [network], objective  # a list: its weights belong to the body
        self._exclude_history = exclude_history
        self._catalogue: Tensor | None = None

    def build(self, *_: Any, **__: Any) -> None:
        self.built = True

    def compute_metrics(self, mode: str | None = None) -> dict[str, Tensor]:
        """`next-item/<metric>` of the rank metric; the stock method expects metrics that return one value per
        cut-off."""
        (metric,) = self.metrics
        return {f"{self.task_name}/{name}": value for name, value in metric.compute().items()}

    def train(self, mode: bool = True) -> "NextItemTask":
        if mode:
            self._catalogue = None  # weights are about to change
        return super().train(mode)

    def forward(
        self,
        inputs: dict[str, Tensor],
        targets: object = None,
        training: bool = False,
        testing: bool = False,
        top_k: int | None = None,
        count: int | None = None,
        **_: Any,
    ) -> dict[str, Tensor] | Tensor | tuple[Tensor, Tensor]:
        """count: items in the batch, if the host knows it."""
        network, items = self._network[0], inputs[ITEM].long()
        if training:
            none = items.new_empty(0)
            users = inputs[ROW].flatten().long() if ROW in inputs else None
            loss = self._objective(items, users, count and predicted_positions(network, len(items), count))
            return {"loss": loss, "labels": none, "predictions": none}
        if self._catalogue is None or not testing:
            self._catalogue = network.catalogue()
        if testing:
            histories, wanted = split_last(items)
            scores = network.user_states(histories) @ self._catalogue.T
            scores[:, :FIRST_ITEM] = -torch.inf
            loss = torch.nn.functional.cross_entropy(scores, wanted)
            found = ranks(scores, histories, wanted, self._exclude_history)
            return {"loss": loss, "labels": wanted, "predictions": found}
        scores = network.user_states(items) @ self._catalogue.T
        scores[:, :FIRST_ITEM] = -torch.inf
        return select_top_k(scores, top_k) if top_k else scores


class RankMetric(torchmetrics.Metric):
    """HR@10 and NDCG@10 as running sums over ranks: memory does not grow with the rows evaluated."""

    full_state_update = False
    hits: Tensor
    gains: Tensor
    rows: Tensor

    def __init__(self, k: int = 10):
        super().__init__()
        self.k = k
        for name in ("hits", "gains", "rows"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ranks: Tensor, _targets: Tensor) -> None:
        """ranks: int64 [B], 0 is the best."""
        self.hits += (ranks < self.k).sum()
        self.gains += ndcg_gains(ranks + 1, self.k).sum()
        self.rows += len(ranks)

    def compute(self) -> dict[str, Tensor]:
        rows = self.rows.clamp_min(1)
        return {f"hr_at_{self.k}": self.hits / rows, f"ndcg_at_{self.k}": self.gains / rows}


class _Model(KnownParts, tr.Model):
    pass


def to_t4rec(
    network: DualViewNetwork, schema: Schema, config: TrainConfig, auxiliary: Auxiliary, exclude_history: bool = False
) -> tr.Model:
    """A Transformers4Rec Model of the network; both share their weights."""
    task = NextItemTask(network, Objective(network, config, auxiliary), exclude_history)
    return _Model(tr.Head(DualViewBody(network, schema, auxiliary.mutual), task))
