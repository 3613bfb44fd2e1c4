"""Retrieval-augmented self-distillation (LLM-ESR, arXiv 2405.20646): a user's state follows those of similar users."""

import torch
import torch.nn.functional as F
from torch import Tensor


def similar_users(profiles: Tensor, count: int, chunk: int = 1024) -> Tensor:
    """The `count` nearest other users by cosine, int64 [U, count]; profiles: float [U, D].

    Compares all pairs: U^2 * D operations, seconds for tens of thousands of users.
    """
    profiles = F.normalize(profiles, dim=-1)
    found = []
    for start in range(0, len(profiles), chunk):
        similarity = profiles[start : start + chunk] @ profiles.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -2  # not oneself
        found.append(similarity.topk(min(count, len(profiles) - 1), dim=1).indices)
    return torch.cat(found)


class Distillation:
    """Mean squared distance of a user's state to the mean state of similar users.

    LLM-ESR encodes the similar users at every step. Here their states are those of the last time they were in a
    batch, at most one epoch old, so that the loss costs no forward pass. A user without any seen neighbour is
    left out.
    """

    def __init__(self, neighbours: Tensor, width: int):
        """neighbours: int64 [U, N], rows of similar users. width: of the states."""
        self.neighbours = neighbours
        self.states = torch.zeros(len(neighbours), width)
        self.known = torch.zeros(len(neighbours), dtype=torch.bool)

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint: states float32 [U, width], known bool [U]."""
        return {"states": self.states, "known": self.known}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self.states, self.known = state["states"], state["known"]

    def __call__(self, users: Tensor, states: Tensor) -> Tensor:
        """users: int64 [B], their rows; states: float [B, width]. Returns the loss and remembers the states."""
        users = users.cpu()
        near = self.neighbours[users]
        weight = self.known[near].to(states)  # [B, N]
        wanted = (self.states[near].to(states) * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)
        some = weight.any(1)
        self.states[users], self.known[users] = states.detach().float().cpu(), True
        return ((states - wanted) ** 2)[some].mean() if some.any() else states.new_zeros(())
