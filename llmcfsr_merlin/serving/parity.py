"""The release gate: a server recommends what the library recommends."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.serving.client import Client


@dataclass(frozen=True)
class Parity:
    """Counts of histories.

    equal: same ids at every rank; ties: ids differ only among items whose scores differ by less than the tolerance;
    different: the rest. max_score_difference: largest absolute difference of scores at the same rank.
    """

    histories: int
    equal: int
    ties: int
    different: int
    max_score_difference: float
    first_difference: str | None = None

    @property
    def passed(self) -> bool:
        return self.different == 0

    def as_dict(self) -> dict:
        return asdict(self)


def check_served(
    trained: str | Path,
    url: str,
    histories: Sequence[Sequence],
    k: int = 10,
    *,
    tolerance: float = 1e-4,
    shortlist: int = 0,
    **filters: Any,
) -> Parity:
    """Compare a server with the offline recommender of a run (or folder with a sealed model) on every given history.

    shortlist: the one that the server was exported with.
    """
    offline = Recommender.load(trained, shortlist=shortlist).answer(histories, k, **filters)
    with Client(url) as client:
        served = client.answer(histories, k, **filters)
    equal = ties = 0
    first, largest = None, 0.0
    for row in range(len(histories)):
        wanted, found = offline.items[row], served.items[row][: offline.items.shape[1]]
        gap = np.abs(offline.scores[row] - served.scores[row][: len(wanted)])
        blank = np.isnan(offline.scores[row])
        same_blanks = (blank == np.isnan(served.scores[row][: len(wanted)])).all()
        close = same_blanks and (gap[~blank] <= tolerance).all()
        flags = offline.unknown[row] == served.unknown[row] and offline.fallback[row] == served.fallback[row]
        largest = max(largest, float(gap[~blank].max(initial=0.0)) if same_blanks else float("inf"))
        if flags and close and (wanted == found).all():
            equal += 1
        elif flags and close and _is_tie(wanted, found, offline.scores[row], served.scores[row], tolerance):
            ties += 1
        elif first is None:
            first = f"history {row}: offline {wanted.tolist()}, served {found.tolist()}"
    return Parity(len(histories), equal, ties, len(histories) - equal - ties, largest, first)


def _is_tie(
    wanted: np.ndarray, found: np.ndarray, wanted_scores: np.ndarray, found_scores: np.ndarray, tolerance: float
) -> bool:
    """Whether every item that moved has the same score in both lists, or stands at the cut of the list."""
    scores = dict(zip(wanted, wanted_scores))
    cut = np.nanmin(wanted_scores)
    return all(
        abs(scores.get(item, cut) - score) <= tolerance for item, score in zip(found, found_scores) if item is not None
    )
