"""Estimate peak training memory and fail early."""

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.registry import scorer_class
from llmcfsr_merlin.training.candidates import KEPT

RANKED = 1 << 26  # validation scores held at once, users times items
_BASE = 700 << 20  # Python, torch and Merlin
_USERS = 10_000  # whose candidates are kept for the score weights


def ranked_users(n_items: int) -> int:
    """Users per validation batch for `n_items`: at most 256, fewer for large catalogues."""
    return max(1, min(256, RANKED // n_items))


def training_bytes(model: ModelConfig, shape: Shape) -> int:
    """Peak of a training in bytes, measured within a fifth at a million items (benchmarks/memory.py).

    The vectors as they are read, shared by the scorers and saved; each scorer's own estimate; the
    validation scores; the candidates of the calibration.
    """
    vectors = 3 * shape.n_items * ((shape.semantic or 0) + (shape.lexical or 0))
    scores = 8 * min(256, RANKED // shape.n_items + 1) * shape.n_items
    parts = sum(scorer_class(name).memory_bytes(settings, shape) for name, settings in model.scorers.items())
    features = sum(len(scorer_class(name).FEATURES) for name in model.scorers)
    kept = _USERS * features * min(features * KEPT, shape.n_items) if features > 1 else 0
    return _BASE + 4 * (vectors + scores + kept) + parts


def check_memory(model: ModelConfig, shape: Shape, free: int) -> None:
    """InputError if `free` bytes are not enough to train."""
    needed = training_bytes(model, shape)
    if needed > free:
        smaller = "lower the network's hidden" if model.network else "choose another model"
        if shape.semantic:
            smaller += f", or shorten the vectors ({shape.semantic} dimensions): embed.reduction=pca, embed.dimension"
        raise InputError(
            f"training {shape.n_items:,} items needs about {needed / 1e9:.1f} GB of memory, found {free / 1e9:.1f} GB "
            f"free: {smaller}"
        )
