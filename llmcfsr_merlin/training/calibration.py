"""Ranking of the validation items over the full catalogue: what epochs, match weights and settings are chosen by."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import transformers4rec.torch as tr
from torch import Tensor

from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.ranker import Ranker

# Weights that validation chooses from: of the content match of every item, of items without interactions on top, and of
# the transitions.
GAMMAS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
COLD_GAMMAS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
TRANSITION_GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Weights(NamedTuple):
    """gamma, cold_gamma and transition_gamma of a network."""

    gamma: float = 0.0
    cold: float = 0.0
    transition: float = 0.0


@torch.inference_mode()
def validation_ranks(
    network: DualViewNetwork, valid: Iterable, weights: Sequence[Weights], exclude_history: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rank of each validation item, from 0, for each of the weights.

    valid: batches of the Merlin dataloader over the split `valid`; a row's last item is the one to find.
    exclude_history: the user's other items are left out of the ranking. Yields targets int64 [B] and ranks int64
    [weights, B] a batch, on the CPU. The network's own weights are left at 0.
    """
    set_weights(network, Weights())
    ranker = Ranker(network, bulk=True)
    content, transitions = any(w.gamma or w.cold for w in weights), any(w.transition for w in weights)
    for batch, _ in valid:
        sequences = tr.utils.padding.pad_inputs(batch)[ITEM].long().to(ranker.device)
        last = (sequences != 0).sum(1, keepdim=True) - 1
        target = sequences.gather(1, last)
        history = sequences.scatter(1, last, 0)[:, :-1]
        scores = ranker.scores(history)
        if exclude_history:
            wanted = scores.gather(1, target)
            scores.scatter_(1, history, -torch.inf).scatter_(1, target, wanted)
        match = ranker.content_match(history) if content else None
        follows = network.transition_match(history) if transitions else None
        # Floats, since torch adds up bools by a slow way through int64: half of the time of choosing weights.
        matched, total, above = scores, torch.empty_like(scores), torch.empty_like(scores)
        ranks, of = [], (0.0, 0.0)
        for gamma, cold, transition in weights:
            if (gamma, cold) != of:
                matched, of = torch.addcmul(scores, match, gamma + cold * network.coldness), (gamma, cold)
            found = torch.add(matched, follows, alpha=transition, out=total) if transition else matched
            ranks.append(torch.gt(found, found.gather(1, target), out=above).sum(1).long())
        yield target.squeeze(1).cpu(), torch.stack(ranks).cpu()


def set_weights(network: DualViewNetwork, weights: Weights) -> None:
    network.gamma.fill_(weights.gamma)
    network.cold_gamma.fill_(weights.cold)
    network.transition_gamma.fill_(weights.transition)


def ndcg(ranks: Tensor, k: int = 10) -> Tensor:
    """NDCG@k of single targets: ranks int64 [..., B], from 0, to float64 [...], their mean."""
    return ((ranks < k) / torch.log2(ranks.double() + 2)).mean(-1)


def choose_match(
    network: DualViewNetwork, valid: Iterable, tail: Tensor, tolerance: float = 0.0, exclude_history: bool = False
) -> Weights:
    """Set the network's weights of the matches by validation NDCG@10 (full ranking) and return them.

    Among the weights whose NDCG@10 is within `tolerance` (a share) of the best, those with the best NDCG@10 on tail
    items. tail: bool [V]. exclude_history as in validation_ranks. An item matches itself best: left in where it is not
    recommended again, the history pushes every gamma to 0 (measured on Beauty).
    """
    gammas = GAMMAS if network.config.content_match else (0.0,)
    transitions = TRANSITION_GAMMAS if network.config.transition_neighbours else (0.0,)
    tried = [Weights(gamma, 0.0, transition) for gamma in gammas for transition in transitions]
    overall, of_tail = _measure(network, valid, tried, tail, exclude_history)
    best = tried[int(overall.argmax())]
    if network.config.content_match:
        # cold_gamma takes over a part of what a larger gamma does, hence also the next smaller one.
        place = GAMMAS.index(best.gamma)
        gammas = GAMMAS[max(place - 1, 0) : place + 1]
        more = [best._replace(gamma=gamma, cold=cold) for gamma in gammas for cold in COLD_GAMMAS[1:]]
        found = _measure(network, valid, more, tail, exclude_history)
        overall, of_tail, tried = torch.cat([overall, found[0]]), torch.cat([of_tail, found[1]]), tried + more
    allowed = overall >= (1 - tolerance) * overall.max()
    wanted = of_tail if tolerance else overall
    chosen = tried[int(wanted.masked_fill(~allowed, -1).argmax())]
    set_weights(network, chosen)
    return chosen


def _measure(network, valid, weights: list[Weights], tail: Tensor, exclude_history: bool) -> tuple[Tensor, Tensor]:
    """NDCG@10 of all validation items and of the tail ones, float64 [weights]; the tail's is 0 where there is none."""
    parts = list(validation_ranks(network, valid, weights, exclude_history))
    targets, ranks = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=1)
    chosen = tail[targets]
    return ndcg(ranks), ndcg(ranks[:, chosen]) if chosen.any() else torch.zeros(len(weights), dtype=torch.float64)
