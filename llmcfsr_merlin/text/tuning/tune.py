"""Contrastive fine-tuning of a language model on pairs of augmented prompts (LLMEmb's SCFT, arXiv 2409.19925).

Runs in one process or, started by `workers.run_workers` or `accelerate launch`, in several: each encodes its share of
every contrastive batch and all use the whole batch as negatives, so the number of processes does not change the result.
"""

import inspect
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.runtime.reporters import Reporting
from llmcfsr_merlin.runtime.watch import Watch
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.prompts import Attributes, Prompter
from llmcfsr_merlin.text.tuning.contrastive import Embedder, cached_backward, info_nce, length_chunks
from llmcfsr_merlin.text.tuning.lora import attach_lora, save_tuned
from llmcfsr_merlin.text.tuning.pairs import Neighbours, PairBatch, PairSampler
from llmcfsr_merlin.text.tuning.tuning_state import (
    is_readable,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel
    from transformers import PreTrainedModel

CHECKPOINT = "checkpoint"
BEST = "best.safetensors"
_NOBODY = Watch()
_LOGGED = 10  # steps between two reported losses


@dataclass
class _State:
    """The progress of tuning; written into every checkpoint."""

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    history: tuple = ()


def holdout_positions(items: Sequence[Attributes], share: float, seed: int) -> list[int]:
    """Positions of the items held out: 2 to 1000 of those with two attributes or more, drawn from the seed."""
    rich = [position for position, attributes in enumerate(items) if len(attributes) > 1]
    if len(rich) < 10:
        raise InputError(f"embed.tune: expected at least 10 items of two or more attributes, found {len(rich)}")
    order = np.random.default_rng(seed).permutation(len(rich))
    return sorted(rich[place] for place in order[: min(1000, max(2, round(len(rich) * share)))])


def attribute_retrieval(encoder: TextEncoder, items: Sequence[Attributes], prompter: Prompter, seed: int = 0) -> float:
    """MRR of retrieving one half of an item's attributes by the other half among all `items` (two or more each).

    Measures whether the model knows which attributes belong together, on held-out items. Rank ties count half.
    """
    halves = []
    for number, attributes in enumerate(items):
        shuffled = random.Random(f"{seed}/{number}").sample(attributes, len(attributes))
        middle = len(shuffled) // 2
        halves.append((prompter.render(shuffled[:middle]), prompter.render(shuffled[middle:])))
    query, target = (encoder.encode(texts) for texts in zip(*halves))
    scores = query @ target.T
    own = np.diag(scores)[:, None]
    rank = 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    return float((1 / rank).mean())


def tune(
    encoder: TextEncoder,
    items: Sequence[Attributes],
    prompter: Prompter,
    settings: TuneConfig,
    out: Path,
    neighbours: Neighbours | None = None,
    watch: Watch = _NOBODY,
) -> dict:
    """Fine-tune `encoder.model`, write the best weights into the folder `out` and return what the manifest records.

    items: attributes of each item; only those of two or more are held out. neighbours: by position in `items`.
    watch: the tools that follow the loss and the attribute retrieval.
    A killed call resumes from its last checkpoint when called again with the same `out`. `out` ends up as a folder that
    transformers (full) or peft (lora) loads.
    """
    accelerator = _accelerator(encoder)
    main = accelerator.is_main_process
    held = set(holdout_positions(items, settings.holdout, settings.seed))
    holdout = [items[position] for position in sorted(held)]
    kept = [position for position in range(len(items)) if position not in held and items[position]]
    sampler = PairSampler(
        [items[position] for position in kept],
        prompter,
        batch_size=settings.batch_size,
        drop=settings.drop,
        seed=settings.seed,
        neighbours=_restrict(neighbours, kept) if neighbours and settings.cooccurrence else None,
        cooccurrence=settings.cooccurrence,
    )
    model = encoder.model
    for name, parameter in model.named_parameters():
        if "pooler" in name:
            parameter.requires_grad_(False)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(**_not_reentrant(model))
        if settings.method == "lora" and hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
    if settings.method == "lora":
        torch.manual_seed(settings.seed)  # the adapters' initial weights
        model = encoder.model = attach_lora(model, settings)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    total = max(1, settings.epochs * len(sampler) // settings.accumulation)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, settings.warmup))
    embed = accelerator.prepare(Embedder(model, encoder.pooling, settings.precision))
    optimizer = accelerator.prepare(optimizer)
    out.mkdir(parents=True, exist_ok=True)
    if main and not is_readable(out / BEST):  # without it the checkpoint's best step is lost
        shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    accelerator.wait_for_everyone()
    state = _State(**load_checkpoint(out / CHECKPOINT, trained, optimizer, schedule, _State().__dict__))

    def evaluate() -> bool:
        """Evaluate, keep the best weights, write a checkpoint; True if tuning should stop."""
        model.eval()
        score = attribute_retrieval(encoder, holdout, prompter, settings.seed) if main else 0.0
        score = float(accelerator.gather(torch.tensor([score], device=accelerator.device)).max())
        state.history = (*state.history, (state.step, round(score, 6)))
        reporting.log(state.step, eval_retrieval=score)
        if score > state.best:
            state.best, state.best_step, state.stale = score, state.step, 0
            if main:
                save_weights(out / BEST, trained)
        else:
            state.stale += 1
        state.seconds += time.perf_counter() - clock[0]
        clock[0] = time.perf_counter()
        if main:
            save_checkpoint(out / CHECKPOINT, trained, optimizer, schedule, state.__dict__)
        accelerator.wait_for_everyone()
        return state.stale >= settings.patience

    reporting = Reporting(watch if main else _NOBODY, out, **settings.model_dump())
    clock = [time.perf_counter()]
    stop = evaluate() if state.step == 0 else state.stale >= settings.patience
    with Progress(total, "tune", "steps", shown=main, start=state.step) as bar:
        while state.step < total and not stop:
            first = state.step * settings.accumulation
            optimizer.zero_grad()
            # Seeded per step, so that a resumed run draws the same dropout as an uninterrupted one.
            torch.manual_seed(settings.seed * 1_000_003 + state.step)
            model.train()
            loss = 0.0
            for number in range(first, first + settings.accumulation):
                epoch, position = divmod(number, len(sampler))
                batch = next(sampler.epoch(epoch, position))
                final = number == first + settings.accumulation - 1
                loss += _backward(encoder, embed, accelerator, batch, settings, final)
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            schedule.step()
            state.step += 1
            if not math.isfinite(loss):
                raise InputError(
                    f"embed.tune: the loss became {loss} at step {state.step}: lower tune.learning_rate or use float32"
                )
            bar.say(f"loss {loss / settings.accumulation:.3f}, retrieval {state.best:.3f}")
            bar.update()
            if state.step % _LOGGED == 0:
                reporting.log(state.step, loss=loss / settings.accumulation)
            if state.step % settings.evaluate_every == 0 or state.step == total:
                stop = evaluate()
    reporting.close()
    load_weights(out / BEST, trained)
    model.eval()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    if main:
        save_tuned(model, encoder.tokenizer, out)
    accelerator.wait_for_everyone()
    return {
        "settings": settings.model_dump(exclude={"enabled", "micro_batch"}),
        "items": len(kept),
        "holdout": len(holdout),
        "steps": state.step,
        "best_step": state.best_step,
        "retrieval_before": state.history[0][1],
        "retrieval": round(state.best, 6),
        "history": [list(entry) for entry in state.history],
        "trained_parameters": sum(parameter.numel() for parameter in trained.values()),
        "seconds": round(state.seconds, 1),
        "processes": accelerator.num_processes,
    }


def _backward(
    encoder: TextEncoder,
    embed: Callable[..., torch.Tensor],
    accelerator: "Accelerator",
    batch: PairBatch,
    settings: TuneConfig,
    final: bool,
) -> float:
    """Add the gradient of one contrastive batch; returns its loss."""
    size, world, rank = len(batch.left), accelerator.num_processes, accelerator.process_index
    mine = np.array_split(np.arange(size), world)[rank]
    tokens = encoder.tokenise([batch.left[i] for i in mine] + [batch.right[i] for i in mine])
    chunks = length_chunks([len(row) for row in tokens], settings.micro_batch)
    masks = [torch.from_numpy(mask).to(accelerator.device) for mask in (batch.left_mask, batch.right_mask)]

    def forward(chunk: np.ndarray) -> torch.Tensor:
        return embed(**encoder.batch([tokens[i] for i in chunk]))

    def loss_gradient(vectors: torch.Tensor) -> tuple[float, torch.Tensor]:
        leaf = _gather(accelerator, vectors, size, world).requires_grad_(True)  # [2B, D]
        loss = info_nce(leaf[:size], leaf[size:], settings.temperature, *masks)
        loss.backward()
        assert leaf.grad is not None
        both = torch.from_numpy(np.concatenate([mine, mine + size])).to(leaf.device)
        # DDP averages over processes, but each holds only the gradient of its own rows.
        return float(loss.detach()), leaf.grad[both] * (world / settings.accumulation)

    def backward(vectors: torch.Tensor, gradient: torch.Tensor, last: bool) -> None:
        with nullcontext() if last and final else accelerator.no_sync(embed):
            vectors.backward(gradient.to(vectors.dtype))

    return cached_backward(forward, chunks, loss_gradient, backward)


def _gather(accelerator: "Accelerator", vectors: torch.Tensor, size: int, world: int) -> torch.Tensor:
    """Left rows then right rows of the whole batch, (2B, D), from each process's own (left rows, right rows)."""
    if world == 1:
        return vectors.detach().clone()
    half, largest = len(vectors) // 2, -(-size // world)
    padded = torch.zeros(2, largest, vectors.shape[1], device=vectors.device)
    padded[0, :half], padded[1, :half] = vectors[:half], vectors[half:]
    everyone = accelerator.gather(padded.unsqueeze(0))  # [world, 2, largest, D]
    counts = [len(part) for part in np.array_split(np.arange(size), world)]
    return torch.cat(
        [torch.cat([everyone[rank, side, :count] for rank, count in enumerate(counts)]) for side in (0, 1)]
    )


def _accelerator(encoder: TextEncoder) -> "Accelerator":
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingDependency(f"embed.tune needs accelerate ({error}): pip install accelerate") from error
    device = next(encoder.model.parameters()).device
    return Accelerator(cpu=device.type == "cpu")


def _rate(step: int, total: int, warmup: float) -> float:
    rising = max(1, round(total * warmup))
    return (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))


def _restrict(neighbours: Neighbours, kept: list[int]) -> Neighbours:
    """Neighbours among the kept items, renumbered by their position in `kept`."""
    position = np.full(len(neighbours.starts) - 1, -1, dtype=np.int64)
    position[kept] = np.arange(len(kept))
    owner = position[np.repeat(np.arange(len(position)), np.diff(neighbours.starts))]
    other = position[neighbours.items]
    known = (owner >= 0) & (other >= 0)
    owner, other = owner[known], other[known]
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(kept)))]).astype(np.int64)
    return Neighbours(starts, other[order])


def _not_reentrant(model: "PreTrainedModel | PeftModel") -> dict:
    """DDP and inputs without gradient need non-reentrant checkpointing; transformers before 4.35 has no option for
    it."""
    if "gradient_checkpointing_kwargs" in inspect.signature(model.gradient_checkpointing_enable).parameters:
        return {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return {}
