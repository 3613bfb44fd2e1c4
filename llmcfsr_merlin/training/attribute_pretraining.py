"""Pre-training with item attributes (S3-Rec, Zhou et al., CIKM 2020, arXiv 2008.07873)."""

import logging
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmcfsr_merlin.dataset.item_attributes import item_attributes
from llmcfsr_merlin.dataset.names import ITEM, PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.batches import Batches
from llmcfsr_merlin.training.losses.self_supervision import SelfSupervision
from llmcfsr_merlin.training.procedures import Training

_BATCH, _RATE = 100, 1e-3  # of the published code
_STATE, _EVERY = "self_supervised.safetensors", 10  # epochs between two savings
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_log = logging.getLogger(__name__)


def pretrain_on_attributes(training: Training, network: DualViewNetwork) -> None:
    """Train a causal network in place, read both ways, for train.epochs epochs of all prefixes of the training rows.

    Without attributes the losses of masked items and segments are left. An interrupted one goes on from the last
    multiple of ten epochs.
    """
    settings, device = training.settings, choose_device(training.settings.device)
    if network.masked or not network.post_norm or network.left_padded:
        raise InputError(
            "train.pretrain=attributes reads BERT's blocks both ways: expected backbone sasrec_post_norm, found "
            f"{network.config.backbone}"
        )
    lists, count = attribute_lists(training)
    model = nn.ModuleDict({"network": network, "losses": SelfSupervision(network.width, lists, count)}).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=_RATE)
    batches = Batches(training.files["train"], _BATCH, device, shuffle=True, seed=settings.seed, prefixes=1)
    stream = torch.from_numpy(np.concatenate([_items(file) for file in training.files["train"]])).to(device)
    done = _restore(training.work / _STATE, model, optimiser)
    progress = Progress(settings.epochs * len(batches), "pre-training", "steps", start=done * len(batches))
    model.train()
    for epoch in range(done, settings.epochs):
        batches.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for batch in batches:
            items = latest(batch[ITEM].to(device), network.max_length)
            loss = model["losses"](network, items, stream)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
            progress.update(1)
        if (epoch + 1) % _EVERY == 0 or epoch + 1 == settings.epochs:
            mean = float(total) / len(batches)
            if not math.isfinite(mean):
                raise InputError("pre-training ended without a finite loss: set train.pretrain=null")
            training.report(f"pre-training, epoch {epoch + 1}/{settings.epochs}: loss {mean:.2f}")
            _save(training.work / _STATE, model, optimiser, epoch + 1)


def attribute_lists(training: Training) -> tuple[Tensor, int]:
    """Attributes of each item, int64 [V, K], from 1, filled up with 0; and how many there are."""
    found = item_attributes(training.dataset, training.settings.attributes)
    if found is None:
        _log.warning("no item has one of the attributes %s: none are learned", ", ".join(training.settings.attributes))
        return torch.zeros(len(training.dataset.vocabulary), 1, dtype=torch.long), 0
    each = torch.from_numpy(np.diff(found.indptr).astype(np.int64))
    lists = torch.from_numpy(found.indices.astype(np.int64) + 1).split(each.tolist())
    return nn.utils.rnn.pad_sequence(list(lists), batch_first=True), found.shape[1]


def latest(items: Tensor, length: int) -> Tensor:
    """The latest `length` items of each row, int64 [B, T], right-padded; rows have at most one more."""
    if items.shape[1] <= length:
        return items
    return torch.where((items[:, -1:] != PAD), items[:, 1:], items[:, :-1])


def _items(file: str) -> np.ndarray:
    return pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks().flatten().to_numpy().astype(np.int64)


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Adam, epochs: int) -> None:
    tensors = {name: weight.cpu() for name, weight in model.state_dict().items()} | {"epochs": torch.tensor(epochs)}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": moments[name].cpu() for name in _MOMENTS}
    save_tensors(tensors, path)


def _restore(path: Path, model: nn.Module, optimiser: torch.optim.Adam) -> int:
    """Take what `_save` wrote, if there is a file; the number of epochs done."""
    if not path.is_file():
        return 0
    tensors = load_file(path)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, moment = name.split(".")
            state.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    return int(tensors["epochs"])
