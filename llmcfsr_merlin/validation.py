"""Ranking of the validation items over the full catalogue: what epochs, gamma and settings are chosen by."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import transformers4rec.torch as tr
from torch import Tensor

from llmcfsr_merlin.contract import ITEM
from llmcfsr_merlin.model.network import DualViewNetwork
from llmcfsr_merlin.ranking import Ranker

# Weights of the content match that validation chooses from; 0 is none.
GAMMAS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)


@torch.inference_mode()
def validation_ranks(
    network: DualViewNetwork, valid: Iterable, gammas: Sequence[float], exclude_history: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rank of each validation item, from 0, for each weight of the content match.

    valid: batches of the Merlin dataloader over the split `valid`; a row's last item is the one to find.
    exclude_history: the user's other items are left out of the ranking. Yields targets int64 [B] and ranks int64
    [gammas, B] a batch, on the CPU. network.gamma is left at 0.
    """
    ranker = Ranker(network, bulk=True)
    network.gamma.zero_()
    for batch, _ in valid:
        sequences = tr.utils.padding.pad_inputs(batch)[ITEM].long().to(ranker.device)
        last = (sequences != 0).sum(1, keepdim=True) - 1
        target = sequences.gather(1, last)
        history = sequences.scatter(1, last, 0)[:, :-1]
        scores = ranker.scores(history)
        match = ranker.content_match(history) if any(gammas) else None
        ranks = []
        for gamma in gammas:
            total = scores + gamma * match if gamma else scores.clone()
            wanted = total.gather(1, target)
            if exclude_history:
                total.scatter_(1, history, -torch.inf)
            ranks.append((total > wanted).sum(1))
        yield target.squeeze(1).cpu(), torch.stack(ranks).cpu()


def ndcg(ranks: Tensor, k: int = 10) -> Tensor:
    """NDCG@k of single targets: ranks int64 [..., B], from 0, to float64 [...], their mean."""
    return ((ranks < k) / torch.log2(ranks.double() + 2)).mean(-1)


def choose_gamma(network: DualViewNetwork, valid: Iterable, exclude_history: bool = False) -> float:
    """Set `network.gamma` to the value of GAMMAS with the best validation NDCG@10 and return it.

    exclude_history as in validation_ranks. An item matches itself best: left in where it is not recommended again, the
    history pushes every gamma to 0 (measured on Beauty).
    """
    ranks = torch.cat([found for _, found in validation_ranks(network, valid, GAMMAS, exclude_history)], dim=1)
    best = GAMMAS[int(ndcg(ranks).argmax())]
    network.gamma.fill_(best)
    return best
