"""The network as Transformers4Rec blocks: body, task and metric for its Head, Model and Trainer.

Transformers4Rec's own input and transformer blocks read one view and cannot fuse two between the layers of an encoder,
so the body wraps our network; masked targets come from its MaskedLanguageModeling, training from its Trainer. Its stock
task returns rows x items of logits, which its Trainer keeps: ours returns the rank of the target.
"""

from typing import NamedTuple

import torch
import torchmetrics
import transformers4rec.torch as tr
from torch import Tensor
from transformers4rec.torch.block.base import BlockBase
from transformers4rec.torch.masking import MaskedLanguageModeling

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, PAD, ROW
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.scoring.ranker import select_top_k
from llmcfsr_merlin.training.distillation import Distillation
from llmcfsr_merlin.training.losses import loss_function
from llmcfsr_merlin.training.losses.alignment import alignment


class BodyOutput(NamedTuple):
    """Histories and what is predicted from them.

    states: float [M, views * d] of the M positions with a target, or [B, views * d] of the last ones in inference;
    targets: int64 [M], empty in inference; histories: int64 [B, T]. Only in training: last, int64 [B], the row of
    `states` where each history ends; users, int64 [B], the rows' numbers where the split carries them.
    """

    states: Tensor
    targets: Tensor
    histories: Tensor
    last: Tensor | None = None
    users: Tensor | None = None


class Auxiliary(NamedTuple):
    """What the losses beside next-item prediction need. item_table: float [V, d] of a trained model, to align to."""

    item_table: Tensor | None = None
    distillation: Distillation | None = None


class DualViewBody(BlockBase):
    """Padded encoded histories to the states of the positions with a target."""

    def __init__(self, network: DualViewNetwork, schema, mask: float):
        super().__init__()
        self.network, self.schema = network, schema
        # Only its targets are used: the encoder reads the network's own mask. Not a submodule, since its mask embedding
        # would be a weight that nothing trains. A causal encoder's targets are the sequence shifted by one: the stock
        # CausalLanguageModeling finds the same ones (a test compares) in a hundredth of a training step.
        self._masked = [MaskedLanguageModeling(hidden_size=1, mlm_probability=mask)] if network.masked else []

    def forward(self, inputs: dict[str, Tensor], training: bool = False, testing: bool = False, **_) -> BodyOutput:
        items = inputs[ITEM].long()
        if not (training or testing):
            return BodyOutput(self.network.user_states(items), items.new_empty(0), items)
        if training and self._masked:
            return self._predict_masked(items)
        history, targets = items[:, :-1], items[:, 1:]
        packing = Packing(targets != PAD)  # every position that has a next item
        last = packing.lengths.cumsum(0) - 1
        read = history.masked_fill(targets == PAD, PAD) if testing else history
        if testing and self._masked:
            return BodyOutput(self.network.user_states(read), packing.pack(targets)[last], read)
        states = self.network.encode(self.network.embed(history, packing), packing)
        if testing:
            return BodyOutput(states[last], packing.pack(targets)[last], read)
        users = inputs[ROW].flatten().long() if ROW in inputs else None
        return BodyOutput(states, packing.pack(targets), history, last, users)

    def _predict_masked(self, items: Tensor) -> BodyOutput:
        """BERT4Rec's training: some items are hidden and predicted from both sides."""
        masking = self._masked[0].compute_masked_targets(items, training=True)
        hidden = masking.targets != PAD
        history = items.masked_fill(hidden, MASK)
        real = items != PAD
        packing = Packing(real)
        states = self.network.encode(self.network.embed(history, packing), packing, real)
        hidden = packing.pack(hidden)
        return BodyOutput(states[hidden], packing.pack(items)[hidden], history)

    def output_size(self) -> torch.Size:
        return torch.Size([-1, -1, self.network.width])

    forward_output_size = output_size


class NextItemTask(tr.NextItemPredictionTask):
    """Loss in training, the 0-based rank of the held-out item over the full catalogue in evaluation.

    exclude_history: the user's other items take no part in the ranking.
    """

    def __init__(
        self, network: DualViewNetwork, config: TrainConfig, auxiliary: Auxiliary, exclude_history: bool = False
    ):
        super().__init__(metrics=[RankMetric()])
        self._network, self._train = [network], config  # a list: the weights belong to the body alone
        self._auxiliary, self._exclude_history = auxiliary, exclude_history
        self._loss = loss_function(config.loss)
        self._catalogue: Tensor | None = None

    def build(self, *_, **__) -> None:
        self.built = True

    def compute_metrics(self, mode: str | None = None) -> dict[str, Tensor]:
        """`next-item/<metric>` of the rank metric; the stock method expects metrics that return one value a cut-off."""
        (metric,) = self.metrics
        return {f"{self.task_name}/{name}": value for name, value in metric.compute().items()}

    def train(self, mode: bool = True) -> "NextItemTask":
        if mode:
            self._catalogue = None  # weights are about to change
        return super().train(mode)

    def forward(self, inputs: BodyOutput, targets=None, training: bool = False, testing: bool = False, top_k=None, **_):
        network = self._network[0]
        states, wanted = inputs.states, inputs.targets
        if training:
            loss = self._loss(network, states, wanted, self._train)
            if self._train.align:
                teacher, temperature = self._auxiliary.item_table, self._train.align_temperature
                loss = loss + self._train.align * alignment(network, wanted, teacher, temperature)
            if self._auxiliary.distillation is not None:
                if inputs.users is None:
                    raise InputError("train.distil needs a causal backbone: masked training has no state of a user")
                last = states[inputs.last]
                loss = loss + self._train.distil * self._auxiliary.distillation(inputs.users, last)
            return {"loss": loss, "labels": wanted[:0], "predictions": wanted[:0]}
        if testing:
            if self._catalogue is None:
                self._catalogue = network.catalogue()
            scores = states @ self._catalogue.T
            scores[:, :FIRST_ITEM] = -torch.inf
            loss = torch.nn.functional.cross_entropy(scores, wanted)
            of_wanted = scores.gather(1, wanted.unsqueeze(1))
            if self._exclude_history:
                scores = scores.scatter(1, inputs.histories, -torch.inf)
            ranks = (scores > of_wanted).sum(1)
            return {"loss": loss, "labels": wanted, "predictions": ranks}
        scores = states @ network.catalogue().T
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
        hit = ranks < self.k
        self.hits += hit.sum()
        self.gains += (hit / torch.log2(ranks.double() + 2)).sum()
        self.rows += len(ranks)

    def compute(self) -> dict[str, Tensor]:
        rows = self.rows.clamp_min(1)
        return {f"hr_at_{self.k}": self.hits / rows, f"ndcg_at_{self.k}": self.gains / rows}


def to_t4rec(
    network: DualViewNetwork, schema, config: TrainConfig, auxiliary: Auxiliary, exclude_history: bool = False
) -> tr.Model:
    """A Transformers4Rec Model of the network; both share their weights."""
    body = DualViewBody(network, schema, config.mask)
    return tr.Model(tr.Head(body, NextItemTask(network, config, auxiliary, exclude_history)))
