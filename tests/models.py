"""Models of random weights, in which every part matters, for the tests of scoring and serving."""

import numpy as np
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.old_settings import upgrade_settings
from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.scorer import ItemVectors


def model_config(**settings) -> ModelConfig:
    """A whole llm_cfsr but for what is given, in flat keys: hidden, views, content_match, transition_neighbours, ..."""
    model = upgrade_settings({"hidden": 16, "transition_neighbours": 5} | settings)
    model["scorers"]["network"] |= {key: settings[key] for key in NetworkSettings.model_fields if key in settings}
    return ModelConfig.model_validate(model)


def random_model(
    config: ModelConfig,
    n_items: int,
    max_length: int,
    semantic: int = 16,
    lexical: int | None = None,
    counts: np.ndarray | None = None,
    seed: int = 0,
) -> Ensemble:
    """n_items: V. semantic, lexical: dimensions of the random vectors. counts: training counts int64 [V], or random."""
    torch.manual_seed(seed)
    found = {"semantic": semantic, "lexical": lexical}
    shape = Shape(n_items, max_length, **{name: found[name] for name in config.reads})
    model = Ensemble.empty(config, shape)
    real = n_items - FIRST_ITEM
    for _, buffer in model.vectors.named_buffers():
        buffer.copy_(rows(torch.randn(real, buffer.shape[1])))
    counts = torch.randint(0, 20, (n_items,)) if counts is None else torch.as_tensor(counts)
    scorers = model.scorers
    if "network" in scorers:
        network = scorers["network"].network
        network.initialise(counts)
        with torch.no_grad():
            for weight in network.parameters():
                if not weight.any():
                    weight.normal_(std=0.3)
    if "content" in scorers:
        scorers["content"].coldness.copy_(1 / (1 + counts.float() / 3))
    if "transitions" in scorers:
        table = scorers["transitions"]
        size = (real, table.settings.neighbours)
        table.next_items.copy_(rows(torch.randint(FIRST_ITEM, n_items, size)))
        table.next_weights.copy_(rows(torch.rand(size) / 10))
        table.next_cosines.copy_(table.next_weights.roll(1, 1))  # no draw: tests count on the ones that follow
    chosen = {"content": 2.0, "content_cold": 3.0, "transitions": 0.5}
    model.set_weights({name: weight for name, weight in chosen.items() if name in model.weights})
    return model.eval()


def rows(real: torch.Tensor) -> torch.Tensor:
    """With the three reserved rows of zeros in front."""
    return F.pad(real, (0, 0, FIRST_ITEM, 0))


def ids_only(n_items: int = 40, max_length: int = 8, **settings) -> DualViewNetwork:
    """A network of random weights over item ids; settings: of NetworkSettings."""
    torch.manual_seed(0)
    shape = Shape(n_items, max_length)
    return DualViewNetwork(NetworkSettings(**settings), n_items, max_length, ItemVectors(shape))
