"""Ranking of the validation items over the full catalogue: what epochs, match weights and settings are chosen by."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import transformers4rec.torch as tr
from torch import Tensor

from llmcfsr_merlin.contract import ITEM
from llmcfsr_merlin.model.network import DualViewNetwork
from llmcfsr_merlin.ranking import Ranker

# Weights of the content match that validation chooses from: of every item, and of items without interactions on top.
GAMMAS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
COLD_GAMMAS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)

Weights = tuple[float, float]  # gamma, cold_gamma


@torch.inference_mode()
def validation_ranks(
    network: DualViewNetwork, valid: Iterable, weights: Sequence[Weights], exclude_history: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rank of each validation item, from 0, for each weight of the content match.

    valid: batches of the Merlin dataloader over the split `valid`; a row's last item is the one to find.
    exclude_history: the user's other items are left out of the ranking. Yields targets int64 [B] and ranks int64
    [weights, B] a batch, on the CPU. The network's own weights are left at 0.
    """
    ranker = Ranker(network, bulk=True)
    network.gamma.zero_()
    network.cold_gamma.zero_()
    for batch, _ in valid:
        sequences = tr.utils.padding.pad_inputs(batch)[ITEM].long().to(ranker.device)
        last = (sequences != 0).sum(1, keepdim=True) - 1
        target = sequences.gather(1, last)
        history = sequences.scatter(1, last, 0)[:, :-1]
        scores = ranker.scores(history)
        match = ranker.content_match(history) if any(map(any, weights)) else None
        ranks = []
        for gamma, cold in weights:
            total = scores.clone() if not (gamma or cold) else scores + (gamma + cold * network.coldness) * match
            wanted = total.gather(1, target)
            if exclude_history:
                total.scatter_(1, history, -torch.inf)
            ranks.append((total > wanted).sum(1))
        yield target.squeeze(1).cpu(), torch.stack(ranks).cpu()


def ndcg(ranks: Tensor, k: int = 10) -> Tensor:
    """NDCG@k of single targets: ranks int64 [..., B], from 0, to float64 [...], their mean."""
    return ((ranks < k) / torch.log2(ranks.double() + 2)).mean(-1)


def choose_match(
    network: DualViewNetwork, valid: Iterable, tail: Tensor, tolerance: float = 0.0, exclude_history: bool = False
) -> Weights:
    """Set the network's gamma and cold_gamma by validation NDCG@10 (full ranking) and return them.

    Among the weights whose NDCG@10 is within `tolerance` (a share) of the best, those with the best NDCG@10 on tail
    items. tail: bool [V]. exclude_history as in validation_ranks. An item matches itself best: left in where it is not
    recommended again, the history pushes every gamma to 0 (measured on Beauty).
    """
    first = [(gamma, 0.0) for gamma in GAMMAS]
    overall, of_tail = _measure(network, valid, first, tail, exclude_history)
    place = int(overall.argmax())
    # cold_gamma takes over a part of what a larger gamma does, hence also the next smaller one.
    second = [(GAMMAS[i], cold) for i in range(max(place - 1, 0), place + 1) for cold in COLD_GAMMAS[1:]]
    more, more_of_tail = _measure(network, valid, second, tail, exclude_history)
    overall, of_tail, weights = torch.cat([overall, more]), torch.cat([of_tail, more_of_tail]), first + second
    allowed = overall >= (1 - tolerance) * overall.max()
    wanted = of_tail if tolerance else overall
    gamma, cold = weights[int(wanted.masked_fill(~allowed, -1).argmax())]
    network.gamma.fill_(gamma)
    network.cold_gamma.fill_(cold)
    return gamma, cold


def _measure(network, valid, weights: list[Weights], tail: Tensor, exclude_history: bool) -> tuple[Tensor, Tensor]:
    """NDCG@10 of all validation items and of the tail ones, float64 [weights]; the tail's is 0 where there is none."""
    parts = list(validation_ranks(network, valid, weights, exclude_history))
    targets, ranks = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=1)
    chosen = tail[targets]
    return ndcg(ranks), ndcg(ranks[:, chosen]) if chosen.any() else torch.zeros(len(weights), dtype=torch.float64)
