"""A trained model's catalogue grown to many times its size, for measurements that no trained model is large enough for.

Each new item is an item of the trained model, moved: its vectors and its collaborative row are mixed with noise of the
covariance that all items have, so that the mean, the covariance and thereby the spread of the scores stay, while
neighbourhoods get denser, as in a larger shop. Its transitions lead to new items of those of the original. Histories
are real ones, each item replaced by one of its copies.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.ensemble import Ensemble

MOVED = 0.2  # share of an item's variance that is noise: the 64th of 1,000,000 is as near as the 2nd of 12,000
_CHUNK = 1 << 16


def grow(trained: Path, items: int, folder: Path) -> Path:
    """A sealed model of `items` items in `folder`, from the trained model of `trained`."""
    torch.manual_seed(0)
    small = load_model(trained)
    real = small.shape.n_items - FIRST_ITEM
    parent = torch.arange(items) % real  # the first are the trained items themselves
    model = Ensemble.empty(small.config, small.shape._replace(n_items=items + FIRST_ITEM))
    for name, target in model.vectors.named_buffers():
        _moved(getattr(small.vectors, name), parent, target)
    for name, part in model.scorers.items():
        own, per_item = small.scorers[name].state_dict(), set(part.PER_ITEM) | {"coldness", "log_counts"}
        for key, target in part.state_dict().items():
            if key == "next_items":
                _copies(own[key], parent, real, items, target)
            elif key.endswith("collaborative.weight"):
                _moved(own[key], parent, target)
            elif key in per_item:
                target[:FIRST_ITEM] = own[key][:FIRST_ITEM]
                target[FIRST_ITEM:] = own[key][FIRST_ITEM:][parent]
            else:
                target.copy_(own[key])
    model.set_weights(small.weights)
    folder.mkdir(parents=True)
    known = Vocabulary.load(trained / "vocabulary.parquet")
    counts = known.counts[FIRST_ITEM:][parent.numpy()]
    ids = [f"G{place:08d}" for place in range(items)]
    columns = {"item_id": ids, "code": np.arange(FIRST_ITEM, items + FIRST_ITEM), "count": counts,
               "train_count": known.train_counts[FIRST_ITEM:][parent.numpy()]}  # fmt: skip
    pq.write_table(pa.table(columns), folder / "vocabulary.parquet")
    save_model(model, folder, Vocabulary.load(folder / "vocabulary.parquet").hash)
    seal(folder, "train", "benchmark", {})
    return folder


def grown_histories(histories: list[list[int]], real: int, items: int) -> list[list[int]]:
    """Encoded histories of the trained model, each item replaced by one of its copies."""
    random = np.random.default_rng(0)
    return [
        [item + real * int(random.integers(0, (items - 1 - (item - FIRST_ITEM)) // real + 1)) for item in history]
        for history in histories
    ]


@torch.no_grad()
def _moved(source: Tensor, parent: Tensor, target: Tensor) -> None:
    known = source[FIRST_ITEM:]
    centre = known.mean(0)
    spread = torch.linalg.cholesky(torch.cov(known.T).double() + 1e-8 * torch.eye(known.shape[1])).float()
    target[:FIRST_ITEM] = source[:FIRST_ITEM]
    for start in range(0, len(parent), _CHUNK):
        some = parent[start : start + _CHUNK]
        noise = torch.randn(len(some), known.shape[1]) @ spread.T
        moved = centre + (1 - MOVED) ** 0.5 * (known[some] - centre) + MOVED**0.5 * noise
        first = len(known) - start
        if first > 0:
            moved[:first] = known[some[:first]]
        target[FIRST_ITEM + start : FIRST_ITEM + start + len(some)] = moved


@torch.no_grad()
def _copies(source: Tensor, parent: Tensor, real: int, items: int, target: Tensor) -> None:
    known = source[FIRST_ITEM:]
    for start in range(0, len(parent), _CHUNK):
        led = known[parent[start : start + _CHUNK]].long()
        room = (items - 1 - (led - FIRST_ITEM)) // real + 1
        copy = (torch.rand(led.shape) * room).long().clamp_max(room - 1)
        moved = torch.where(led >= FIRST_ITEM, led + real * copy, 0)
        target[FIRST_ITEM + start : FIRST_ITEM + start + len(led)] = moved.int()
