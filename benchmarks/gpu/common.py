"""What the steps of the GPU kit share: the device, clocks, and models and histories made in place."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
LENGTH = 50
BEAUTY = (22_363, 12_101)  # users and items of Amazon Beauty, whose shape the generated data has


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeat: int = 5, warm_up: int = 2) -> list[float]:
    """Seconds of each of `repeat` calls, the device waited for."""
    for _ in range(warm_up):
        work()
    wait()
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - start)
    return found


def median(work: Callable[[], object], repeat: int = 5, warm_up: int = 2) -> float:
    return statistics.median(seconds(work, repeat, warm_up))


def histories(users: int, items: int, seed: int = 0) -> np.ndarray:
    """Codes int64 [users, LENGTH + 1], right-padded: lengths and popularity are skewed as in Beauty (mean about 9)."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(2 + random.geometric(0.13, users), LENGTH + 1)
    codes = 3 + np.minimum(random.zipf(1.2, (users, LENGTH + 1)) - 1, items - 1)
    codes[np.arange(LENGTH + 1) >= lengths[:, None]] = 0
    return codes


def model(items: int, name: str = "llm_cfsr", semantic: int = 384, lexical: int = 128, seed: int = 0):
    """An Ensemble of random weights, in which every scorer has one, and its Config; on the CPU."""
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.dataset.dataset import Shape
    from llmcfsr_merlin.scoring.ensemble import Ensemble

    config = Config.load(None, ["name=gpu"], name)
    torch.manual_seed(seed)
    sizes = {"semantic": semantic, "lexical": lexical}
    shape = Shape(items + 3, LENGTH, **{kind: sizes[kind] for kind in config.model.reads})
    made = Ensemble.empty(config.model, shape)
    for _, buffer in made.vectors.named_buffers():
        buffer[3:].normal_()
    counts = torch.randint(0, 50, (items + 3,))
    scorers = made.scorers
    if "network" in scorers:
        scorers["network"].network.initialise(counts)
    if "content" in scorers:
        scorers["content"].coldness.copy_(1 / (1 + counts.float() / 3))
    if "transitions" in scorers:
        table = scorers["transitions"]
        table.next_items[3:] = torch.randint(3, items + 3, table.next_items[3:].shape, dtype=torch.int32)
        table.next_weights[3:].uniform_(0, 0.1)
    weights = {"content": 2.0, "content_cold": 3.0, "transitions": 0.5}
    made.set_weights({feature: weight for feature, weight in weights.items() if feature in made.weights})
    return made.eval(), config
