"""The one top-k over the catalogue, shared by evaluation, `recommend` and serving."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def pad(histories: Sequence[Sequence[int]], max_length: int) -> Tensor:
    """Ragged codes -> int64 [B, L] right-padded, L = the longest kept; the last `max_length` items are kept."""
    kept = [list(history)[-max_length:] for history in histories]
    width = max((len(history) for history in kept), default=0) or 1
    return torch.tensor([history + [0] * (width - len(history)) for history in kept], dtype=torch.long)


_REDUCED = 64  # dimensions of the vectors that a shortlist is made by


class Ranker:
    """Scores the full catalogue for histories; the candidate matrix is computed once, at construction.

    Reserved rows always score -inf. Ties are broken by the smaller code, so that every path gives the same ids.
    """

    def __init__(self, network: DualViewNetwork, bulk: bool = False, shortlist: int = 0):
        """bulk: many histories will be scored; all cosines of items are computed once where they fit in 2 GB.

        shortlist: top_k scores this many items exactly, the best by a content match of the vectors' leading 64
        dimensions; 0: all of them. For catalogues whose exact content match takes too long.
        """
        self.network = network.eval()
        self.catalogue = network.catalogue()
        vectors = self.catalogue.unit_vectors
        self._similarity = vectors @ vectors.T if bulk and vectors is not None and len(vectors) ** 2 <= 5e8 else None
        self._reduced = None
        if vectors is not None and network.matches and 0 < shortlist < network.rows - FIRST_ITEM:
            self._reduced = _reduce(vectors)
        self.shortlist = shortlist
        self.rows, self.max_length = network.rows, network.max_length
        self.device = network.gamma.device

    def pad(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Ragged codes -> int64 [B, L] right-padded; the last `max_length` items are kept."""
        return pad(histories, self.max_length)

    @torch.inference_mode()
    def scores(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] right-padded -> float32 [B, V], -inf on reserved rows."""
        if histories.shape[1] > self.max_length:
            raise ValueError(
                f"expected histories of at most {self.max_length} items, found {histories.shape[1]}: use pad()"
            )
        histories = histories.to(self.device)
        scores = self.network.user_states(histories) @ self.catalogue.candidates.T
        if self.catalogue.unit_vectors is not None and self.network.matches:
            scores = scores + self.network.match_weight() * self.content_match(histories)
        if self.network.follows:
            scores = scores + self.network.transition_gamma * self.network.transition_match(histories)
        scores[:, :FIRST_ITEM] = -torch.inf
        return scores.float()

    def content_match(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] -> float [B, V], see DualViewNetwork.content_match."""
        if self._similarity is not None:
            return self.network.content_match_all(histories, self._similarity)
        return self.network.content_match(histories, self.catalogue.unit_vectors)

    @torch.inference_mode()
    def top_k(self, histories: Tensor, k: int, blocked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Best k items of each history: codes int64 [B, k'] and scores float32 [B, k'], best first, k' = min(k, V).

        blocked: bool [B, V], items that must not be returned. A row with fewer than k' left ends with code 0 and -inf.
        """
        k = min(k, self.rows - FIRST_ITEM)
        if self._reduced is not None and k < self.shortlist:
            return self._top_of_shortlist(histories.to(self.device), k, blocked)
        scores = self.scores(histories)
        if blocked is not None:
            scores = scores.masked_fill(blocked.to(scores.device), -torch.inf)
        return select_top_k(scores, k)

    def _top_of_shortlist(self, histories: Tensor, k: int, blocked: Tensor | None) -> tuple[Tensor, Tensor]:
        states, network = self.network.user_states(histories), self.network
        weight, candidates = network.match_weight(), self.catalogue.candidates
        rough = states @ candidates.T
        rough += weight * network.content_match(histories, self._reduced)
        transitions = None
        if network.follows:
            transitions = network.transition_gamma * network.transition_match(histories)
            rough += transitions
        rough[:, :FIRST_ITEM] = -torch.inf
        if blocked is not None:
            rough = rough.masked_fill(blocked.to(rough.device), -torch.inf)
        best, listed = rough.topk(self.shortlist, dim=1)
        listed, order = listed.sort(dim=1)  # ascending codes, as select_top_k breaks ties
        exact = (candidates[listed] @ states.unsqueeze(-1)).squeeze(-1)
        exact = exact + weight[listed] * network.content_match(histories, self.catalogue.unit_vectors, listed)
        if transitions is not None:
            exact = exact + transitions.gather(1, listed)
        exact = exact.masked_fill(best.gather(1, order) == -torch.inf, -torch.inf)
        place, scores = select_top_k(exact.float(), k)
        return listed.gather(1, place).masked_fill(scores == -torch.inf, 0), scores


def _reduce(vectors: Tensor, sample: int = 100_000) -> Tensor:
    """Vectors [V, D] in the D x 64 basis that keeps most of their inner products: the leading singular directions."""
    some = vectors[FIRST_ITEM :: max(len(vectors) // sample, 1)]
    _, basis = torch.linalg.eigh(some.T @ some)
    return vectors @ basis[:, -_REDUCED:]


def select_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codes and scores of the k largest of each row, ties by the smaller code, without sorting the row.

    scores: float [B, V]. Returns int64 [B, k] and float [B, k]; code 0 where the score is -inf.

    >>> select_top_k(torch.tensor([[-torch.inf, 2.0, 3.0, 3.0]]), 2)[0].tolist()
    [[2, 3]]
    """
    values, _ = scores.topk(k, dim=1)
    threshold = values[:, -1:]
    # topk picks any of the items that tie at the threshold: take the whole tie and keep its smallest codes.
    above = scores > threshold
    tied = scores == threshold
    room = k - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1) <= room))
    codes = chosen.nonzero()[:, 1].view(len(scores), k)  # ascending codes in each row
    picked = scores.gather(1, codes)
    order = picked.argsort(dim=1, descending=True, stable=True)
    codes, picked = codes.gather(1, order), picked.gather(1, order)
    return codes.masked_fill(picked == -torch.inf, 0), picked
