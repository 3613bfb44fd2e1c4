"""Seconds of encoding, training and ranking, measured here for a moment on a sample of the shop's own data."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.ranker import pad
from llmcfsr_merlin.scoring.scorer import ItemVectors
from llmcfsr_merlin.text.embed import make_recipe
from llmcfsr_merlin.text.item_encoder import ItemEncoder
from llmcfsr_merlin.text.language_models import ModelSource
from llmcfsr_merlin.training.losses.mutual_distillation import MutualDistillation
from llmcfsr_merlin.training.objective import Auxiliary, Objective
from llmcfsr_merlin.training.validation import held_out_ranks

_WARM, _STEPS, _RANKED = 1, 3, 64


class Encoding(NamedTuple):
    """dimension: of the vectors. seconds: per item. cut: share of the prompts that max_tokens cuts."""

    dimension: int
    seconds: float
    cut: float


def time_encoding(config: Config, source: ModelSource, rows: Sequence[Mapping]) -> Encoding:
    """Encode a few items. rows: of the items table, evenly spread over it."""
    embed = config.embed
    recipe = make_recipe(embed, source)
    encoder = ItemEncoder(
        recipe, source, batch_size=embed.batch_size, batch_tokens=embed.batch_tokens, device=embed.device
    )
    encoder.encode_rows(rows[:2])  # loads the model
    start = time.perf_counter()
    found = encoder.encode_rows(rows)
    seconds = (time.perf_counter() - start) / len(rows)
    return Encoding(encoder.encoder.dimension, seconds, found.cut / len(rows))


class TrainingSpeed(NamedTuple):
    """step: seconds of a training step; ranked: seconds to rank a user's held-out item among all items."""

    step: float
    ranked: float


def time_training(config: Config, shape: Shape, rows: Sequence[np.ndarray], batch_size: int) -> TrainingSpeed:
    """Take a few training steps with random weights, without the auxiliary losses of distil and align.

    rows: encoded ids int64 of training sequences, a sample of at least one batch if the log has so many.
    """
    train = config.train.model_copy(update={"distil": 0.0, "align": 0.0})
    device = choose_device(train.device)
    assert config.model.network is not None, "only a network is trained"
    torch.manual_seed(train.seed)
    network = DualViewNetwork(config.model.network, *shape[:2], ItemVectors(shape)).to(device)
    mutual = MutualDistillation.of(network, train).to(device) if train.copies else None
    objective = Objective(network, train, Auxiliary(mutual=mutual))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    generator = np.random.default_rng(train.seed)
    for number in range(_WARM + _STEPS):
        if number == _WARM:
            start = _now(device)
        chosen = [rows[place].tolist() for place in generator.integers(0, len(rows), batch_size)]
        items = pad(chosen, max(map(len, chosen))).to(device)
        optimizer.zero_grad()
        objective(items).backward()
        optimizer.step()
    step = (_now(device) - start) / _STEPS
    network.eval()
    some = [row.tolist() for row in rows[:_RANKED]]
    with torch.inference_mode():
        catalogue = network.catalogue()
        start = _now(device)
        held_out_ranks(network, pad(some, max(map(len, some))).to(device), catalogue)
        return TrainingSpeed(step, (_now(device) - start) / len(some))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
