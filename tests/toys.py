"""Extensions that stand outside the package: what a user writes to add a scorer, a loss or a backbone."""

import torch
import torch.nn.functional as F
from torch import nn

from llmcfsr_merlin.config.section import Section
from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.dataset.raw.formats import Format
from llmcfsr_merlin.dataset.raw.records import Layout
from llmcfsr_merlin.scoring.network.backbones import Backbone
from llmcfsr_merlin.scoring.scorer import Feature, Scorer


class NextDoor(Scorer):
    """Items whose encoded id is close to that of the last item of the history."""

    class Settings(Section):
        reach: float = 5.0

    FEATURES = (Feature("next_door", (0.0, 1.0, 4.0)),)
    PER_ITEM = ("places",)

    def __init__(self, settings, shape, vectors):
        super().__init__(settings, shape, vectors)
        self.register_buffer("places", torch.arange(shape.n_items).float())

    @classmethod
    def fit(cls, settings, dataset, vectors, context):
        return cls(settings, dataset.shape, vectors)

    def forward(self, histories, items=None):
        last = histories.gather(1, ((histories != 0).sum(1, keepdim=True) - 1).clamp_min(0))
        places = self.places[None] if items is None else self.places[items]
        return torch.exp(-(places - self.places[last]).abs() / self.settings.reach).unsqueeze(0)


class MeanBlock(Backbone):
    """Each position becomes the running mean of those before it and itself."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x, packing=None, real=None):
        padded = x if packing is None else packing.unpack(x)
        steps = torch.arange(1, padded.shape[1] + 1, device=x.device)[None, :, None]
        mean = padded.cumsum(1) / steps
        return x + self.out(mean if packing is None else packing.pack(mean))


def two_negatives(network, states, targets, settings):
    """Cross-entropy against two uniform negatives per position."""
    negatives = torch.randint(3, network.n_items, (len(targets), 2), device=targets.device)
    candidates = network.candidates(torch.cat([targets[:, None], negatives], 1))
    return F.cross_entropy((candidates @ states.unsqueeze(-1)).squeeze(-1), torch.zeros_like(targets))


def till_receipts(settings, rules):
    """JSON lines of a shop's till, and its article file."""
    log = Layout("a till receipt", user=("card",), item=("article",), time=("at",))
    return Format("till", log, ("article",), _article, {"shelf": str}, rules)


def _article(record):
    return {ITEM: record.get("article"), TITLE: record.get("label"), "shelf": record.get("shelf")}
