"""What a run would need: seconds, memory and disk of each stage, each with what the estimate rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, ITEMS
from llmcfsr_merlin.planning.log_facts import Log, Sizes
from llmcfsr_merlin.planning.trials import Encoding, TrainingSpeed, time_encoding, time_training
from llmcfsr_merlin.runtime.progress import said_seconds
from llmcfsr_merlin.text.language_models import ModelSource
from llmcfsr_merlin.training.fit import default_batch_size
from llmcfsr_merlin.training.memory import training_bytes

_SAMPLED = 48  # items encoded
_ROWS = 4096  # training rows drawn from
# Calibration scores the validation users by all scorers, twice, and ranks their candidates at some hundred points of
# weights. In rankings of all validation users by the network alone: 3 on MovieLens 100K, 9 on Beauty, 15 on Yelp.
_CALIBRATION = 10.0
_RANKINGS = {"evaluate": 4.0}  # both history rules, lists and candidates beside the ranks
_START = {"prepare": 8.0, "train": 10.0, "evaluate": 8.0, "export": 15.0}  # imports, and loading what was written
_VECTOR_COPIES, _ITEM_ROW = 2, 40  # stored before and after the reduction; ids and flags of a row
_CHECKPOINTS = 3 * 3  # of weights and two moments each: the last, the best, and one being written


@dataclass(frozen=True)
class StagePlan:
    """seconds: None if it cannot be said. basis: what the estimate rests on."""

    stage: str
    does: str
    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Forecast:
    """memory: bytes of the largest training; disk: bytes of the run directory when it is fullest."""

    stages: list[StagePlan]
    memory: int
    memory_of: str
    disk: int
    encoding: Encoding | None


@dataclass(frozen=True)
class Prepared:
    """What is known of the data: the filtered log, its sizes, and the folder that ingest wrote."""

    log: Log
    sizes: Sizes
    folder: Path
    ingest_seconds: float
    filter_seconds: float
    metadata: int
    """Items with attributes."""

    @property
    def n_items(self) -> int:
        return len(self.sizes.item_counts)


def forecast(config: Config, data: Prepared, source: ModelSource | None) -> Forecast:
    """Measure for a moment, and scale. source: the encoder, None if the run needs none or it is not here."""
    encoding = None
    if source is not None and (rows := item_rows(data)):
        encoding = time_encoding(config, source, rows)
    shape = Shape(
        data.n_items + FIRST_ITEM, config.prepare.max_length,
        encoding.dimension if encoding else 384, config.embed.lexical or None,
    )  # fmt: skip
    models = [config, *(config.with_model(name) for name in config.baselines)]
    networks = [one for one in models if one.model.network]
    needs = {one.model.name: training_bytes(one.model, _read_by(one, shape)) for one in models}
    largest = max(needs, key=lambda name: needs[name])
    speeds = {one.model.name: _speed(one, data, _read_by(one, shape)) for one in networks}
    stages = [
        StagePlan("ingest", "read the files", 1.2 * data.ingest_seconds, "this check has just read them"),
        StagePlan(
            "prepare", f"{data.sizes.rows['train']:,} training rows", _START["prepare"] + 3 * data.filter_seconds,
            "three times what filters and cuts took here, and the imports of NVTabular",
        ),
        *_embed(config, data, encoding),
        *(_train(one, data, speeds[one.model.name]) for one in networks),
        _evaluate(config, data, models, speeds),
        StagePlan("export", "a Triton model repository", _START["export"], "imports, and writing the weights"),
    ]  # fmt: skip
    return Forecast(stages, needs[largest], largest, _disk(config, data, shape), encoding)


def item_rows(data: Prepared, count: int = _SAMPLED) -> list[dict]:
    """Rows of the items table with an attribute, evenly spread."""
    found: list[dict] = []
    for part in sorted((data.folder / ITEMS).glob("part-*.parquet")):
        table = pq.read_table(part)
        places = np.unique(np.linspace(0, len(table) - 1, 4 * count).astype(int))
        found += table.take(places).to_pylist()
    found = [row for row in found if any(value for name, value in row.items() if name != ITEM)]
    return found[:: max(1, len(found) // count)][:count]


def training_rows(data: Prepared, max_length: int) -> Sequence[np.ndarray]:
    """Encoded ids of some training sequences, as the network reads them; the numbers of the items are arbitrary."""
    log, first = data.log, data.log.first
    items = np.unique(log.item, return_inverse=True)[1] + FIRST_ITEM
    ends = np.r_[first[1:], len(log.user)] - 2
    places = np.flatnonzero(ends - first >= 2)
    chosen = places[:: max(1, len(places) // _ROWS)]
    return [items[max(first[user], ends[user] - max_length - 1) : ends[user]] for user in chosen]


def _read_by(config: Config, shape: Shape) -> Shape:
    """The shape without the vectors that a model does not read."""
    reads = config.model.reads
    semantic = shape.semantic if "semantic" in reads else None
    return shape._replace(semantic=semantic, lexical=shape.lexical if "lexical" in reads else None)


def _batch(config: Config, data: Prepared) -> tuple[int, int]:
    """Batch size, and steps in an epoch."""
    rows = data.sizes.rows["train"]
    size = config.train.batch_size or default_batch_size(rows)
    if config.train.samples == "prefixes":
        rows = max(data.sizes.trained_on - rows, 1)
    return size, -(-rows // size)


def _speed(config: Config, data: Prepared, shape: Shape) -> TrainingSpeed | None:
    rows = training_rows(data, config.prepare.max_length)
    return time_training(config, shape, rows, _batch(config, data)[0]) if rows else None


def _embed(config: Config, data: Prepared, encoding: Encoding | None) -> list[StagePlan]:
    if not config.reads_vectors:
        return []
    does = f"vectors of {data.n_items:,} items by {config.embed.model}"
    if config.embed.enrich.enabled or config.embed.tune.enabled:
        extra = "tuning" if config.embed.tune.enabled else "writing attributes"
        return [StagePlan("embed", f"{does}, with {extra}", None, f"not estimated with {extra}")]
    if encoding is None:
        return [StagePlan("embed", does, None, "the encoder is not here to be measured")]
    seconds = min(data.metadata, data.n_items) * encoding.seconds / config.embed.workers
    return [StagePlan("embed", does, seconds, f"{1 / encoding.seconds:,.0f} items/s on {_SAMPLED} of them just now")]


def _train(config: Config, data: Prepared, speed: TrainingSpeed | None) -> StagePlan:
    size, steps = _batch(config, data)
    epochs = config.train.epochs * (1 if config.train.pretrain is None else 2)
    does = f"{config.model.name}: at most {epochs} epochs of {steps:,} steps of {size}"
    if speed is None:
        return StagePlan("train", does, None, "no training row")
    if config.train.pretrain in ("attributes", "texts", "interests"):
        return StagePlan("train", f"{does}, after pre-training", None, "not estimated with such pre-training")
    users = min(data.sizes.rows["valid"], config.train.validation_users)
    epoch = steps * speed.step + users * speed.ranked
    calibration = _CALIBRATION * users * speed.ranked * (len(config.model.scorers) > 1)
    basis = f"{speed.step * 1000:,.0f} ms a step just now; {said_seconds(calibration)} of it for the score weights"
    return StagePlan("train", does, _START["train"] + epochs * epoch + calibration, basis)


def _evaluate(config: Config, data: Prepared, models: list[Config], speeds: Mapping) -> StagePlan:
    users, does = data.sizes.rows["test"], f"{len(models)} models, {data.sizes.rows['test']:,} test cases"
    known = [speed.ranked for speed in speeds.values() if speed is not None]
    if not known:
        return StagePlan("evaluate", does, None, "no network to measure the ranking by")
    seconds = _START["evaluate"] + len(models) * users * _RANKINGS["evaluate"] * max(known)
    return StagePlan("evaluate", does, seconds, f"{1 / max(known):,.0f} users/s ranked by the network just now")


def _disk(config: Config, data: Prepared, shape: Shape) -> int:
    """Bytes of a run: what ingest wrote, four copies of the sequences, vectors, and models with their checkpoints."""
    ingested = sum(path.stat().st_size for path in data.folder.rglob("*") if path.is_file())
    sequences = 4 * 8 * len(data.log.item) + 60 * len(data.log.first) * 4
    width = (shape.semantic or 0) * _VECTOR_COPIES + (shape.lexical or 0) if config.reads_vectors else 0
    vectors = data.n_items * (4 * width + _ITEM_ROW)
    models = 0
    for one in [config, *(config.with_model(name) for name in config.baselines)]:
        network = one.model.network
        weights = 4 * shape.n_items * (network.hidden if network else 0)
        read = _read_by(one, shape)
        frozen = 4 * shape.n_items * ((read.semantic or 0) + (read.lexical or 0))
        models += weights * _CHECKPOINTS + 2 * frozen  # trained, and exported
    return ingested + sequences + vectors + models
