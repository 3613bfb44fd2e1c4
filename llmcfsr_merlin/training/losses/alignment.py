"""Auxiliary loss that aligns the two views of an item."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def alignment(network: DualViewNetwork, items: Tensor, teacher: Tensor | None, temperature: float) -> Tensor:
    """Symmetric InfoNCE between the two views of the batch's distinct items; items: int64 [M].

    teacher: float [V, d] frozen, instead of the collaborative view (LLMEmb, arXiv 2409.19925, aligns its adapter to
    the item table of a trained SASRec).
    """
    unique = items.unique()
    views = network.items(unique)
    other = views[0] if teacher is None else teacher[unique]
    logits = F.normalize(views[-1], dim=-1) @ F.normalize(other, dim=-1).T / temperature
    same = torch.arange(len(unique), device=items.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
