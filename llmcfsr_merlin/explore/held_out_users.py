"""Real test users: what they had chosen, and the item that was held out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcfsr_merlin.config.evaluate_settings import EvaluateConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import SEQUENCES
from llmcfsr_merlin.dataset.raw.fields.ids import clean_id
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.evaluation.cases import draw_negatives
from llmcfsr_merlin.runtime.errors import InputError

GROUPS = ("head", "tail", "cold")  # of the held-out item, by its training interactions
_MOST = 50_000  # users to draw from: those of a larger log are found by their id


@dataclass(frozen=True)
class HeldOutUser:
    """A user of the test split by raw ids. group: of the target. trained: its training interactions. tie: the user's
    place in ties, as in the evaluation."""

    user: str
    history: list[str]
    target: str
    group: str
    trained: int
    tie: float


class HeldOutUsers:
    """The test users of a prepared run."""

    def __init__(self, dataset: Dataset, settings: EvaluateConfig):
        self._dataset, self._settings = dataset, settings
        self._sequences = Path(dataset.prepared) / SEQUENCES
        found: dict[str, list[tuple[str, np.ndarray, int]]] = {group: [] for group in GROUPS}
        for case in self._cases():
            found[self._group(int(case[1][case[2]]))].append(case)
            if sum(map(len, found.values())) == _MOST:
                break
        # In the same random order at every start, so that a user can be shown again.
        order = np.random.default_rng(0)
        self._drawn = {group: [cases[i] for i in order.permutation(len(cases))] for group, cases in found.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Group -> users that can be drawn."""
        return {group: len(cases) for group, cases in self._drawn.items()}

    def draw(self, group: str, number: int) -> HeldOutUser:
        """The user at a place of the group's order, which starts again after its end. InputError for an empty group."""
        cases = self._drawn[group]
        if not cases:
            raise InputError(f"expected a test user whose item is of the {group}, found none")
        return self._user(*cases[number % len(cases)])

    def find(self, user: str) -> HeldOutUser:
        """The user of a raw id: the last test item of a user with several. InputError for one that is not there."""
        wanted = clean_id(user) or ""
        cases = [case for cases in self._drawn.values() for case in cases if case[0] == wanted]
        cases = cases or [case for case in self._cases(wanted) if case[0] == wanted]
        if not cases:
            raise InputError(f"expected a user of the test split, found {user!r}, who is not in it")
        return self._user(*max(cases, key=lambda case: case[2]))

    def _cases(self, user: str | None = None) -> Iterator[tuple[str, np.ndarray, int]]:
        """User, whole sequence and the target's place of each case."""
        for block in read_histories(self._sequences):
            if user is not None and user not in block.users:
                continue
            self._all_targets = block.targets == "all"
            for place, target in block.cases("test"):
                if target > 0:
                    yield str(block.users[place]), block.sequences[place], target

    def _group(self, code: int) -> str:
        trained = self._dataset.train_counts[code]
        return "head" if trained >= self._settings.tail_item else "tail" if trained else "cold"

    def _user(self, user: str, sequence: np.ndarray, target: int) -> HeldOutUser:
        vocabulary, code = self._dataset.vocabulary, int(sequence[target])
        key = f"{user} {target}" if self._all_targets else user  # as in cases.write_cases
        _, tie = draw_negatives(key, sequence, len(vocabulary), 0, self._settings.seed)
        *history, wanted = vocabulary.decode(sequence[: target + 1]).tolist()
        return HeldOutUser(user, history, wanted, self._group(code), int(vocabulary.train_counts[code]), tie)
