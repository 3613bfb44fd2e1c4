"""Steps of a training with a language model: a few weights beside it or inside it, from any step on."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.text.tuning.tuning_state import load_checkpoint, save_checkpoint
from llmcfsr_merlin.training.procedures import Training

_RATE = 2e-4  # of low-rank adapters and what stands between the language model and the rest
_ROWS, _ROW_RATE = "rows.", 1e-2  # of items' rows: Adam moves one only while its item is in the batches
_EVERY = 20  # steps between two checkpoints, which are small
_NORM = 1.0  # of the gradients, at most


def take_steps(model: nn.Module, samples: int, loss_of: Callable[[Tensor], Tensor], training: Training) -> None:
    """Train what is not frozen for settings.language_steps steps, by AdamW with rates that fall to zero.

    loss_of: the loss of some of so many samples, given by their places, int64 [settings.language_batch]. What an
    interrupted call did is not repeated. InputError if the loss does not stay finite.
    """
    settings, folder = training.settings, training.work / "language"
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    groups = [
        {"params": [weight for name, weight in trained.items() if name.startswith(_ROWS) == rows], "lr": rate}
        for rows, rate in ((True, _ROW_RATE), (False, _RATE))
    ]
    total = settings.language_steps
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(1 - step / total, 0.0))
    done = load_checkpoint(folder, trained, optimiser, schedule, {"step": 0})["step"]
    progress, losses = Progress(total, "pre-training", "steps", start=done), []
    model.train()
    for step in range(done, total):
        torch.manual_seed(settings.seed * 1_000_003 + step)  # the same dropout, wherever it was interrupted
        optimiser.zero_grad()
        loss = loss_of(batch_of(step, settings.language_batch, samples, settings.seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), _NORM)
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
        progress.update(1)
        if (step + 1) % _EVERY == 0 or step + 1 == total:
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise InputError(f"train.pretrain={settings.pretrain} ended without a finite loss")
            training.report(f"pre-training, step {step + 1}/{total}: loss {mean:.3f}")
            save_checkpoint(folder, trained, optimiser, schedule, {"step": step + 1})
            losses = []


def batch_of(step: int, size: int, count: int, seed: int) -> Tensor:
    """Which of `count` samples step number `step` reads, int64 [size]; each pass over all is in an order of its own."""
    places = range(step * size, (step + 1) * size)
    orders = {epoch: _order(epoch, count, seed) for epoch in {place // count for place in places}}
    return torch.stack([orders[place // count][place % count] for place in places])


def _order(epoch: int, count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
