"""What a training needs of memory, told before it starts."""

from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.runtime.errors import InputError

RANKED = 1 << 26  # scores that validation holds at once, users times items
_BASE = 700 << 20  # Python, torch and Merlin


def ranked_users(rows: int) -> int:
    """Users that validation ranks at once among `rows` items: at most 256, fewer in large catalogues."""
    return max(1, min(256, RANKED // rows))


def training_bytes(model: ModelConfig, rows: int, dimension: int | None, lexical: int | None = None) -> int:
    """Peak of a training in bytes, measured within a fifth at a million items (benchmarks/memory.py).

    rows: items of the catalogue. dimension, lexical: of the semantic and the lexical vectors, None without. Four
    numbers a weight (itself, its gradient, two of Adam) and two more while a checkpoint is written or read; the vectors
    as they come, as the network keeps them, once more in a checkpoint, and at unit length for the content match;
    transitions, once more while they are counted and in a checkpoint; all items as candidates; scores.
    """
    weights = rows * model.hidden if model.views != ("semantic",) else 0
    vectors = rows * ((dimension or 0) + (lexical or 0))
    candidates = rows * model.hidden * len(model.views)
    scores = min(256, RANKED // rows + 1) * rows
    transitions = 3 * 2 * rows * model.transition_neighbours
    numbers = 6 * weights + transitions + (4 if model.content_match else 3) * vectors + 2 * candidates + 5 * scores
    return _BASE + 4 * numbers


def check_memory(model: ModelConfig, rows: int, dimension: int | None, lexical: int | None, free: int) -> None:
    """InputError where `free` bytes are not enough to train."""
    needed = training_bytes(model, rows, dimension, lexical)
    if needed > free:
        smaller = "lower model.hidden"
        if dimension:
            smaller += f", or shorten the vectors ({dimension} dimensions) by embed.reduction=pca and embed.dimension"
        raise InputError(
            f"training {rows:,} items needs about {needed / 1e9:.1f} GB of memory, found {free / 1e9:.1f} GB free: "
            f"{smaller}"
        )
