"""The device gives what the CPU gives: networks and their gradients, losses, every scorer, ranking."""

from contextlib import contextmanager

import torch

from benchmarks.gpu.common import DEVICE, LENGTH, histories, model
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.config.train_settings import LOSSES
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.registry import BUILT_IN, scorer_class
from llmcfsr_merlin.scoring.scorer import ItemVectors, Shape
from llmcfsr_merlin.training.losses import loss_function

ITEMS = 2000  # more than the negatives of a batch, which are then drawn


def run(record, small: bool) -> None:
    users = 8 if small else 64
    codes = torch.from_numpy(histories(users, ITEMS))
    record.part("ranking", lambda: ranking(codes[:, :LENGTH]))
    for name in BUILT_IN:
        record.part(f"scorer {name}", lambda name=name: scorer(name, codes[:, :LENGTH]))
    for name in LOSSES:
        record.part(f"loss {name}", lambda name=name: loss("llm_cfsr", name, codes))
    for name in presets():
        if "network" in Config.load(None, ["name=gpu"], name).model.scorers:
            record.part(f"network {name}", lambda name=name: network(name, codes))


def error(here: torch.Tensor, there: torch.Tensor) -> float:
    """|there - here| / |here|, over what is finite; infinite if the two differ in what that is."""
    here, there = here.detach().float(), there.detach().float().cpu()
    finite = torch.isfinite(here)
    if not torch.equal(finite, torch.isfinite(there)):
        return float("inf")
    return float((there[finite] - here[finite]).norm() / here[finite].norm().clamp_min(1e-30))


def same_rows(here: torch.Tensor, there: torch.Tensor) -> float:
    """Share of the rows that are equal."""
    return float((here == there.cpu()).all(1).float().mean())


@torch.inference_mode()
def ranking(codes: torch.Tensor) -> dict:
    """Scores and top 10 of the whole model, also prepared for many histories."""
    (here, _), (there, _) = model(ITEMS), model(ITEMS)
    there.to(DEVICE)
    one, other = Ranker(here), Ranker(there)
    best = one.top_k(codes, 10)[0]
    return {
        "fp32_error": error(one.scores(codes), other.scores(codes)),
        "same_top10": same_rows(best, other.top_k(codes, 10)[0]),
        "bulk_fp32_error": error(one.scores(codes), Ranker(there, bulk=True).scores(codes)),
    }


@torch.inference_mode()
def scorer(name: str, codes: torch.Tensor) -> dict:
    """A scorer of random state: its features over the catalogue and for given items."""
    here, there = _scorer(name), _scorer(name).to(DEVICE)
    for one in (here, there):
        one.prepare()
    items = torch.randint(FIRST_ITEM, ITEMS + FIRST_ITEM, (len(codes), 20), generator=torch.Generator().manual_seed(1))
    far = codes.to(DEVICE)
    return {
        "fp32_error": error(here(codes)[..., FIRST_ITEM:], there(far)[..., FIRST_ITEM:]),
        "fp32_error_of_items": error(here(codes, items), there(far, items.to(DEVICE))),
    }


def _scorer(name: str):
    torch.manual_seed(0)
    made, _ = model(ITEMS)
    if name in made.scorers:
        return made.scorers[name]
    shape = Shape(ITEMS + FIRST_ITEM, LENGTH)
    found = scorer_class(name)(scorer_class(name).Settings(), shape, ItemVectors(shape))
    rows = shape.n_items
    if name == "popularity":
        found.log_counts.uniform_(0, 5)
    elif name == "ease":
        found.matrix = torch.randn(rows, rows) * (torch.arange(rows)[:, None] >= FIRST_ITEM)
    elif name == "item_knn":
        columns = torch.randint(FIRST_ITEM, rows, (rows - FIRST_ITEM, 20), dtype=torch.int32)
        found.starts = torch.cat([torch.zeros(FIRST_ITEM, dtype=torch.int64), torch.arange(rows - FIRST_ITEM + 1) * 20])
        found.columns, found.values = columns.flatten(), torch.rand(columns.numel())
    found.weights.fill_(1.0)
    return found.eval()


def network(name: str, codes: torch.Tensor) -> dict:
    """User states and the catalogue of a preset's network, in fp32 and in bf16."""
    (here, _), (there, _) = (model(ITEMS, name) for _ in range(2))
    near, far = (made.scorers["network"].network for made in (here, there.to(DEVICE)))
    with torch.inference_mode():
        states = near.user_states(codes[:, :LENGTH])
        found = {
            "fp32_error": error(states, far.user_states(codes[:, :LENGTH].to(DEVICE))),
            "catalogue_fp32_error": error(near.catalogue(), far.catalogue()),
        }
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return found | {"bf16_error": error(states, far.user_states(codes[:, :LENGTH].to(DEVICE)))}


def loss(name: str, kind: str, codes: torch.Tensor) -> dict:
    """A loss and the gradient of all weights, in fp32 and in bf16; the same negatives are drawn for both."""
    value, gradient = _gradient(name, kind, codes, torch.device("cpu"), False)
    found = {}
    for precision, bf16 in (("fp32", False), ("bf16", True)):
        other, steps = _gradient(name, kind, codes, DEVICE, bf16)
        found |= {f"{precision}_error": error(value, other), f"{precision}_gradient_error": error(gradient, steps)}
    return found


def _gradient(name: str, kind: str, codes: torch.Tensor, device: torch.device, bf16: bool):
    made, config = model(ITEMS, name)
    network = made.to(device).scorers["network"].network.eval()  # without dropout, which each device draws its own way
    codes = codes.to(device)
    torch.manual_seed(0)
    with _draws_on_the_cpu(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        packing = Packing(codes[:, 1:] != PAD)
        states = network.encode(network.embed(codes[:, :-1], packing), packing)
        value = loss_function(kind)(network, states, packing.pack(codes[:, 1:]), config.train).mean()
    value.backward()
    steps = [weight.grad.flatten().cpu() for weight in network.parameters() if weight.grad is not None]
    return value.detach(), torch.cat(steps)


@contextmanager
def _draws_on_the_cpu():
    """torch.randint gives a device what it gives the CPU."""
    draw = torch.randint
    torch.randint = lambda *sizes, device=None, **more: draw(*sizes, **more).to(device)
    try:
        yield
    finally:
        torch.randint = draw
