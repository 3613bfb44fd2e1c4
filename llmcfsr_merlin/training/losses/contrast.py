"""Auxiliary contrastive loss of CL4SRec (Xie et al., ICDE 2022, arXiv 2010.14395): two augmented views of a
history should have the same state."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.item_views import MASK

# Tenths of a history's items that are cropped to, masked or reordered; as in the paper.
_CROP, _MASK, _REORDER = 6, 3, 6
_TEMPERATURE = 1.0


def contrast(network: DualViewNetwork, histories: Tensor) -> Tensor:
    """NT-Xent of the batch, a scalar; histories: int64 [B, T], right-padded, none of them empty."""
    first, second = augmented_twice(histories)
    return nt_xent(network.packed_user_states(first), network.packed_user_states(second), _TEMPERATURE)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """a, b: float [B, d]. Each of the 2B states has to identify its other view among all others, by inner product."""
    states = torch.cat([a, b])
    scores = (states @ states.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(states), device=states.device).roll(len(a))
    return F.cross_entropy(scores, other)


def augmented_twice(histories: Tensor) -> tuple[Tensor, Tensor]:
    """Two different ones of crop, mask and reorder for each history; a history of one item stays as it is."""
    made = torch.stack([crop(histories), mask(histories), reorder(histories)])
    left_out = torch.randint(3, (len(histories),), device=histories.device)
    turn = torch.randint(2, (len(histories),), device=histories.device)
    rows = torch.arange(len(histories), device=histories.device)
    short = (histories != PAD).sum(1, keepdim=True) <= 1
    views = [made[(left_out + 1 + other) % 3, rows].where(~short, histories) for other in (turn, 1 - turn)]
    return views[0], views[1]


def crop(histories: Tensor) -> Tensor:
    """Crop: a contiguous run of six tenths of the items."""
    _, place, lengths = _places(histories)
    kept = lengths * _CROP // 10
    begin = _begin(lengths - kept)
    return histories.gather(1, (begin + place).clamp_max(histories.shape[1] - 1)).masked_fill(place >= kept, PAD)


def mask(histories: Tensor) -> Tensor:
    """Mask: three tenths of the items are replaced by the mask token."""
    real, _, lengths = _places(histories)
    draw = torch.rand(histories.shape, device=histories.device).masked_fill(~real, 2.0)
    return histories.masked_fill(draw.argsort(1).argsort(1) < lengths * _MASK // 10, MASK)


def reorder(histories: Tensor) -> Tensor:
    """Reorder: a contiguous run of six tenths of the items is shuffled."""
    _, place, lengths = _places(histories)
    count = lengths * _REORDER // 10
    begin = _begin(lengths - count)
    within = (place >= begin) & (place < begin + count)
    # Sort keys between begin and begin + 1: after what precedes the run, before what follows it.
    drawn = torch.rand(histories.shape, device=histories.device, dtype=torch.float64)
    keys = torch.where(within, begin + drawn, place.double())
    return histories.gather(1, keys.argsort(1))


def _places(histories: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where items are, bool [B, T]; places, int64 [T]; lengths, int64 [B, 1]."""
    real = histories != PAD
    return real, torch.arange(histories.shape[1], device=histories.device), real.sum(1, keepdim=True)


def _begin(room: Tensor) -> Tensor:
    """A uniform start from 0 to room, both included; room: int64 [B, 1]."""
    return (torch.rand(room.shape, device=room.device) * (room + 1)).long().clamp_max(room)
