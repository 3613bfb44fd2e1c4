"""What the page shows for what was clicked: plain data, made without a widget."""

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import MASKED, history_rule
from llmcfsr_merlin.explore.answers import Model, Rank, Recommended, RunModel
from llmcfsr_merlin.explore.held_out_users import HeldOutUser, HeldOutUsers
from llmcfsr_merlin.explore.live_validation import Figures, LiveValidation
from llmcfsr_merlin.explore.served_model import ServedModel
from llmcfsr_merlin.explore.titled_items import Items, RunItems
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import RECORD
from llmcfsr_merlin.training.fit import validation_sample
from llmcfsr_merlin.training.validation_ranks import ValidationBatches

SHOWN = 10  # recommendations
_USERS = 1000  # of a validation sample
_SCORES = 1 << 28  # users times items: fewer users of a large catalogue


@dataclass
class Session:
    """What one visitor has clicked. weights: model's label -> changed score weights."""

    history: list[str] = field(default_factory=list)
    exclude_seen: bool = False
    user: HeldOutUser | None = None
    weights: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """A feature's part of an item's bar. width: percent of the longest bar of the list."""

    feature: str
    share: float
    width: float


@dataclass(frozen=True)
class Row:
    """A recommendation as it is shown. match: the title of the history's item that it is most like."""

    item: str
    title: str
    score: float
    bar: list[Segment]
    match: str | None
    held_out: bool
    in_history: bool


@dataclass(frozen=True)
class Card:
    """One model's answer. rank: of the held-out item, if a user was picked. failure: why there is no answer."""

    label: str
    rows: list[Row]
    fallback: bool = False
    unknown: int = 0
    rank: Rank | None = None
    changed: bool = False
    failure: str | None = None


class Explorer:
    """The runs (or the server) behind the page. exclude_seen: how the first run's model, or the server, answers. users:
    test users of the first run, None without one."""

    def __init__(self, runs: Sequence[Path] = (), url: str | None = None, key_file: Path | None = None):
        """runs: run directories, or folders of trained models in them. InputError for what cannot be read."""
        if not runs and url is None:
            raise InputError("expected a run directory or --url of a gateway, found neither")
        self.runs = [OpenedRun.open(Path(path)) for path in runs]
        _tell_apart([one.model for one in self.runs], [one.run for one in self.runs])
        self.models: list[Model] = [one.model for one in self.runs]
        served = None
        if url is not None:
            served = ServedModel(url, key_file)
            self.models.append(served)
        self.users: HeldOutUsers | None = None
        self.exclude_seen = False
        self.items: Items
        if self.runs:
            first = self.runs[0]
            self.items = RunItems.load(first.trained, first.model.recommender.vocabulary)
            rule = first.model.ensemble.history_rule or first.config.evaluate.history
            self.exclude_seen = rule == MASKED
            if (first.run / "prepare").is_dir():
                self.users = HeldOutUsers(Dataset.load(first.run), first.config.evaluate)
        elif served is not None:
            self.items, self.exclude_seen = served, served.excludes_seen

    def session(self) -> Session:
        return Session(exclude_seen=self.exclude_seen)

    def cards(self, session: Session) -> list[Card]:
        """What each model recommends, and where the held-out item ranks."""
        return [self._card(model, session) for model in self.models]

    def _card(self, model: Model, session: Session) -> Card:
        weights = session.weights.get(model.label)
        user, history = session.user, session.history
        try:
            answer = model.answer(history, SHOWN, session.exclude_seen, weights)
            rank = None
            if user is not None:
                rank = model.rank(history, user.target, session.exclude_seen, weights, user.tie)
        except InputError as error:
            return Card(model.label, [], failure=str(error))
        title = self.items.title_of
        rows = [
            Row(
                one.item, title(one.item), one.score, bar, one.match and title(one.match),
                user is not None and one.item == user.target, one.item in history,
            )
            for one, bar in zip(answer.items, bars(answer.items))
        ]  # fmt: skip
        return Card(model.label, rows, answer.fallback, answer.unknown, rank, weights is not None)


class OpenedRun:
    """A trained model with the run that it belongs to."""

    def __init__(self, run: Path, trained: Path, config: Config, model: RunModel):
        self.run, self.trained, self.config, self.model = run, trained, config, model
        self._lock = threading.Lock()
        self._validation: LiveValidation | None = None

    @classmethod
    def open(cls, path: Path) -> "OpenedRun":
        """A run directory, or the folder of a trained model in one (RUN/train, RUN/baselines/NAME)."""
        trained = path / "train" if (path / "train").is_dir() else path
        recommender = Recommender.load(trained)
        parents = trained.absolute().parents[:2]
        run = next((folder for folder in parents if (folder / "prepare").is_dir()), trained.parent)
        config = Config.recorded(run) if (run / RECORD).is_file() else Config()
        return cls(run, trained, config, RunModel(recommender.ranker.model.config.name, recommender))

    @property
    def tunable(self) -> bool:
        """Whether there are score weights to change, and a validation to measure them on."""
        return len(self.model.features) > 1 and (self.run / "prepare" / "valid").is_dir()

    def validation(self) -> LiveValidation:
        """Scores a sample of the validation users at the first call, which takes seconds."""
        with self._lock:
            if self._validation is None:
                self._validation = self._measure()
            return self._validation

    def _measure(self) -> LiveValidation:
        ensemble, dataset = self.model.ensemble, Dataset.load(self.run)
        users = max(1, min(_USERS, _SCORES // dataset.shape.n_items))
        settings = self.config.train.model_copy(update={"validation_users": users})
        with tempfile.TemporaryDirectory(prefix="llmcfsr-") as work:
            files = validation_sample(dataset, Path(work), settings)
            batches = list(ValidationBatches(files, users, ensemble.device))
        return LiveValidation(ensemble, batches, dataset.train_counts < self.config.evaluate.tail_item)

    def figures(self, weights: Mapping[str, float], exclude_seen: bool) -> Figures:
        validation = self.validation()
        with self._lock:
            return validation.figures(weights, history_rule(exclude_seen))

    def trade_off(self, exclude_seen: bool, tolerance: float) -> dict[str, float]:
        """The weights that give up at most `tolerance` of the validation's NDCG@10 for the tail."""
        validation = self.validation()
        with self._lock:
            return validation.trade_off(self.model.weights(exclude_seen), history_rule(exclude_seen), tolerance)


def _tell_apart(models: Sequence[RunModel], paths: Sequence[Path]) -> None:
    """Models of one name are called by their folders too."""
    names = [model.label for model in models]
    for model, path in zip(models, paths):
        if names.count(model.label) > 1:
            model.label = f"{model.label} ({path.name})"
    for place, model in enumerate(models):
        if any(model.label == other.label for other in models[:place]):
            model.label = f"{model.label} {place + 1}"


def bars(items: Sequence[Recommended]) -> list[list[Segment]]:
    """Each item's bar: a segment a feature, as wide as what it added or took away, the longest bar 100 percent."""
    longest = max((sum(map(abs, one.shares.values())) for one in items), default=0.0) or 1.0
    return [[Segment(name, share, 100 * abs(share) / longest) for name, share in one.shares.items()] for one in items]
