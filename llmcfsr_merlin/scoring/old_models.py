"""Reads models of earlier versions; their scores stay the same."""

import torch
from torch import Tensor

from llmcfsr_merlin.config.old_settings import upgrade_settings


def with_new_settings(description: dict, tensors: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """A model of format 2 with what it was made without.

    An item of the history was its own closest item and had transitions, items without transitions borrowed none, and a
    cosine did not stand beside a transition.
    """
    scorers = description["model"]["scorers"]
    if "content" in scorers:
        scorers["content"].setdefault("match_itself", True)
    if "transitions" in scorers:
        scorers["transitions"].setdefault("score_history", True)
    weights = tensors.get("transitions/weights")
    if weights is not None and len(weights) < 3:
        tensors = tensors | {"transitions/weights": torch.cat([weights, weights.new_zeros(3 - len(weights))])}
        tensors["transitions/next_cosines"] = torch.zeros(tensors["transitions/next_weights"].shape)
        for of_rule in description.get("history_weights", {}).values():
            for name in ("transitions_borrowed", "co_occurrence"):
                of_rule.setdefault(name, 0.0)
    return description, tensors


def upgrade(description: dict, tensors: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert model.json and the weights of version 0.1, a network with fixed extra scores, to format 2."""
    model = upgrade_settings(description["model"])
    found = {f"network/network.{name}": tensor for name, tensor in tensors.items()}
    found["network/weights"] = torch.ones(1)
    moved = {
        "items.vectors": "vectors/semantic", "lexical": "vectors/lexical", "coldness": "content/coldness",
        "next_codes": "transitions/next_items", "next_weights": "transitions/next_weights",
    }  # fmt: skip
    for old, new in moved.items():
        if (tensor := found.pop(f"network/network.{old}", None)) is not None:
            found[new] = tensor
    gammas = [found.pop(f"network/network.{name}") for name in ("gamma", "cold_gamma", "transition_gamma")]
    if "content" in model["scorers"]:
        found["content/weights"] = torch.stack(gammas[:2])
    if "transitions" in model["scorers"]:
        found["transitions/weights"] = gammas[2:][0].reshape(1)
    shape = {
        "n_items": description["rows"],
        "max_length": description["max_length"],
        "semantic": description.get("semantic_dimension"),
        "lexical": description.get("lexical_dimension"),
    }
    return {
        "format": 2, "model": model, "shape": shape, "max_length": description["max_length"],
        "vocabulary": description["vocabulary"],
    }, found  # fmt: skip
