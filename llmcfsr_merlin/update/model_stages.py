"""The model stages of an update: yesterday's model on the day's items and interactions, and the one that follows it."""

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import (
    DAY,
    ITEM,
    LAST_SEEN,
    LEXICAL,
    METRICS,
    RECENT,
    SCHEMA,
    SEQUENCES,
    TITLE,
    TRAIN_HISTORY,
    USER,
    VECTORS,
    VOCABULARY,
)
from llmcfsr_merlin.dataset.prepare.day import retired_items
from llmcfsr_merlin.dataset.raw.additions import catalogue_ids
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean
from llmcfsr_merlin.dataset.raw.files.source import find_files, fingerprint
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation.measure import measure
from llmcfsr_merlin.evaluation.ranks import ScoreFunction
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, write_json
from llmcfsr_merlin.runtime.watch import LOGS, Watch
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.serving.item_table import LONGEST, titles_of, write_titles
from llmcfsr_merlin.training.fit import WarmStart, counts_of, fit_model
from llmcfsr_merlin.training.model_card import write_card
from llmcfsr_merlin.training.procedures import resolved
from llmcfsr_merlin.update.data_stages import new_codes, new_item_rows

_log = logging.getLogger(__name__)

GROWN = "yesterday"  # the stage of yesterday's model with the day's new items; its name in tables too
ASKED = "day"  # the stage that ranks the day's interactions by it, before anything of the day is trained on


def grow(config: Config, previous: Path, run: Path, items: Path | None) -> Manifest:
    """Write run/yesterday: yesterday's model, which also knows the new items, by their text alone."""
    trained = previous / "train"

    def work(out: Path) -> dict:
        vocabulary = Vocabulary.load(run / "prepare" / VOCABULARY)
        model = load_model(trained, Vocabulary.load(trained / VOCABULARY).hash, allow=config.model.extensions)
        if model.config.trained_by() != config.model.trained_by():
            raise InputError(
                f"expected the model of {trained}, found other settings of the section `model`: "
                "train it anew (`llmcfsr run`) and go on from there"
            )
        codes = new_codes(previous, run)
        if codes:
            embedded = run / "embed" if model.config.reads else None
            dataset = Dataset(run / "prepare", embedded, config.prepare.max_length).reading(model.config.reads)
            vectors = {name: torch.from_numpy(dataset.vectors(name)[codes[0] :]) for name in model.config.reads}
            for part in model.scorers.values():
                part.check_new_items()
            model.grow(NewItems(len(codes), **vectors))
        model.retire([])
        vocabulary.save(out / VOCABULARY)
        save_model(model, out, vocabulary.hash)
        named = {row[ITEM]: clean(row.get(TITLE), LONGEST) for row in new_item_rows(config, previous, run, items)}
        write_titles(out, titles_of(trained) | {raw: title for raw, title in named.items() if title})
        return {"model": model.config.name, "weights": model.weights, "new_items": len(codes)}

    Manifest.load(trained).verify(trained, remembered=True)
    inputs: dict = {"ingest": [], "prepare": [VOCABULARY]}
    if config.model.reads:
        inputs["embed"] = [VECTORS, LEXICAL]
    settings = {"previous": Manifest.load(trained).identity}
    manifest, _ = run_stage(run, GROWN, settings, inputs, work)
    return manifest


def ask(config: Config, run: Path) -> Manifest:
    """Write run/day: each interaction of the day, ranked by yesterday's model after all that was before it."""

    def work(out: Path) -> dict:
        if not any((run / "prepare" / DAY / SEQUENCES).glob("*.parquet")):
            return _nothing(out)
        embedded = run / "embed" if config.model.reads else None
        dataset = Dataset(run / "prepare" / DAY, embedded, config.prepare.max_length)
        models = {GROWN: partial(ranker, config, run / GROWN)}
        rows = measure(
            out, dataset, models, name=config.name, seed=config.train.seed,
            settings=config.evaluate.model_copy(update={"shuffle_test": False, "protocols": ("full",)}),
        )  # fmt: skip
        return {"interactions": next(row["count"] for row in rows if row["group"] == "overall")}

    manifest, _ = run_stage(run, ASKED, config.evaluate.model_dump(), {"prepare": [f"{DAY}/"], GROWN: []}, work)
    return manifest


def _nothing(out: Path) -> dict:
    write_json(out / METRICS, [])
    return {"interactions": 0}


def train(config: Config, run: Path, paths: tuple[Path, ...]) -> Manifest:
    """Write run/train: training goes on from run/yesterday, on the day's users and some of the others.

    paths: the day's catalogue, for update.retire.
    """
    update = config.update

    def work(out: Path) -> dict:
        embedded = run / "embed" if config.model.reads else None
        dataset = Dataset(run / "prepare", embedded, config.prepare.max_length)
        checkpoints = out / ".checkpoints"
        checkpoints.mkdir(exist_ok=True)
        start = load_model(run / GROWN, dataset.vocabulary.hash, allow=config.model.extensions)
        users = sum(len(pq.read_table(path, columns=[USER])[USER].unique()) for path in dataset.files("valid"))
        warm = WarmStart(start, [str(_rows(run, checkpoints, update.replay))], users >= update.calibrate_from)
        if not warm.calibrate:
            _log.info("  %d held-out users (update.calibrate_from): yesterday's score weights stay", users)
        model, history = fit_model(
            config.model, _schedule(config), dataset, checkpoints, exclude_history=config.evaluate.exclude_history,
            tail_item=config.evaluate.tail_item, report=lambda line: _log.info("  %s", line), warm=warm,
            watch=Watch(config.train.report_to, run / LOGS, f"{config.name}/update"),
        )  # fmt: skip
        shutil.rmtree(checkpoints)
        catalogue = catalogue_ids(paths, config.data) if update.retire == "missing" else None
        seen = pq.read_table(run / "prepare" / LAST_SEEN)
        gone = retired_items(dataset.vocabulary.ids.tolist(), seen, catalogue=catalogue, days=update.retire_days)
        model.retire(gone.tolist())
        shutil.copy2(run / "prepare" / VOCABULARY, out / VOCABULARY)
        save_model(model, out, dataset.vocabulary.hash)
        write_json(out / TRAIN_HISTORY, history)
        write_titles(out, titles_of(run / GROWN))
        counts = counts_of(model, history) | {"retired": len(gone)}
        write_card(out, config, run, out, counts)
        return counts

    settings = {
        "model": config.model.trained_by(), "exclude_history": config.evaluate.exclude_history,
        "train": config.train.identity() | {"procedure": resolved(config.train.procedure)},
        "update": update.model_dump(exclude={"max_loss", "check_served", "held_out", "min_item"}),
        "tail_item": config.evaluate.tail_item, "max_length": config.prepare.max_length,
        "catalogue": [fingerprint(path) for path in paths] if update.retire == "missing" else [],
    }  # fmt: skip
    inputs: dict = {"prepare": [VOCABULARY, SCHEMA, LAST_SEEN, "train/", "valid/", f"{RECENT}/"], GROWN: []}
    if config.model.reads:
        inputs["embed"] = [VECTORS, LEXICAL]
    manifest, _ = run_stage(run, "train", settings, inputs, work, resumable=True)
    return manifest


def catalogue_files(config: Config, items: Path | None) -> tuple[Path, ...]:
    """The files of the day's catalogue; InputError if update.retire needs one and there is none."""
    if config.update.retire != "missing":
        return ()
    if not config.data.items:
        raise InputError("update.retire=missing: expected a catalogue in data.items, found none: name its files there")
    return (*find_files(config.data.items, "data.items"), *([] if items is None else [items]))


def _schedule(config: Config) -> TrainConfig:
    """The short schedule; a moving average that is as long, compared with it, as that of the whole training."""
    train, update = config.train, config.update
    return train.model_copy(
        update={
            "epochs": update.epochs,
            "patience": update.epochs,
            "learning_rate": train.learning_rate * update.learning_rate,
            "average": train.average * update.epochs / train.epochs,
        }
    )


def _rows(run: Path, work: Path, replay: float) -> Path:
    """Write the rows that are trained on into `work`: those of the day's users, and a sample of all, evenly spread."""
    kind = pa.schema([(ITEM, pa.list_(pa.int64()))])

    def rows(folder: str) -> pa.Table:
        paths = sorted((run / "prepare" / folder).glob("*.parquet"))
        tables = [pq.read_table(path, columns=[ITEM]).cast(kind) for path in paths]
        return pa.concat_tables([kind.empty_table(), *tables])

    recent, every = rows(RECENT), rows("train")
    count = min(round(len(recent) * replay), len(every))
    others = every.take([place * len(every) // count for place in range(count)])
    path = work / "rows.parquet"
    pq.write_table(pa.concat_tables([recent, others]), path)
    return path


def evaluate(config: Config, run: Path) -> Manifest:
    """Write run/evaluate: the held-out interactions, ranked by the new model and by yesterday's."""

    def work(out: Path) -> dict:
        embedded = run / "embed" if config.model.reads else None
        dataset = Dataset(run / "prepare", embedded, config.prepare.max_length)
        models = {
            config.model.name: partial(ranker, config, run / "train"), GROWN: partial(ranker, config, run / GROWN)
        }  # fmt: skip
        rows = measure(
            out, dataset, models, name=config.name, seed=config.train.seed,
            settings=config.evaluate.model_copy(update={"shuffle_test": False}),
        )  # fmt: skip
        users = next(row["count"] for row in rows if row["group"] == "overall")
        return {"users": users, "recipes": list(models)}

    settings = {"name": config.name, "seed": config.train.seed} | config.evaluate.model_dump()
    inputs = {"prepare": [VOCABULARY, SEQUENCES], "train": [], GROWN: []}
    manifest, _ = run_stage(run, "evaluate", settings, inputs, work)
    return manifest


def ranker(config: Config, folder: Path) -> ScoreFunction:
    """The scoring function of a sealed model, for evaluation."""
    rule = config.evaluate.history
    device = str(choose_device(config.train.device))
    return Recommender.load(folder, device, bulk=True, allow=config.model.extensions).ranker.by_history(rule)


def quality_of_day(config: Config, run: Path) -> float | None:
    """NDCG@10 of yesterday's model on the day's interactions, by the deployment's history rule; None if there were
    none with a history."""
    rule = config.evaluate.history
    rows = json.loads((run / ASKED / METRICS).read_text())
    wanted = {"protocol": "full", "group": "overall", "metric": "ndcg@10", "history": rule}
    return next((row["value"] for row in rows if wanted.items() <= row.items()), None)
