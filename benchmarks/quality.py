"""Ranking quality of the models by dataset and seed, on one prepared run, into docs/results/quality.json.

    LLMCFSR_DATA=../shared/data python benchmarks/quality.py beauty --models llm_cfsr sasrec --seeds 1 2 3
    python benchmarks/quality.py beauty --ablation without_embedding_level with_full_softmax
    python benchmarks/quality.py beauty --models llm_cfsr --vectors tfidf --seeds 1 2 3     # on vectors of vectors.py
    python benchmarks/quality.py beauty --closed-form                                       # popularity, kNN, EASE
    python benchmarks/quality.py --report                                                   # page, figures and tests

Ingest, prepare and embed are made once a dataset (runs/quality/<dataset>/base): all models are fitted on that dataset
and ranked on the same candidates, which depend on a seed and the user alone. runs/quality/<dataset>/<name>-<seed> holds
the trained model (`train`, if it has a network) and its ranks (`evaluate`). What is finished is skipped, a stopped
command goes on from its last epoch. Settings are those of the recipe and the model preset; no search has been made. The
epoch and the score weights are selected on validation; the test items are read here. The papers' own files have recipes
beside this script: paper_yelp and paper_fashion (ids only).
"""

import argparse
import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quality_tables
from quality_tables import recipe_of

from llmcfsr_merlin.cli.log import shown
from llmcfsr_merlin.cli.results import said_ties
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import (
    ITEMS,
    LEXICAL,
    METRICS,
    RANKS,
    SCHEMA,
    SEQUENCES,
    TRAIN_HISTORY,
    VECTORS,
    VOCABULARY,
    history_rule,
)
from llmcfsr_merlin.evaluation.groups import with_history
from llmcfsr_merlin.evaluation.measure import compare_runs, measure
from llmcfsr_merlin.evaluation.ranks import ScoreFunction
from llmcfsr_merlin.evaluation.report.page import write_report
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, sha256_file, write_json
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.training.calibration import ValidationBatches, calibrate
from llmcfsr_merlin.training.fit import fit_model, validation_sample
from llmcfsr_merlin.training.memory import ranked_users

RUNS, RESULTS = Path("runs/quality"), Path("docs/results")
FOCUS, BASE = "llm_cfsr", "llm_esr"
CLOSED_FORM = ("popularity", "item_knn", "ease")
_NETWORK = "model.scorers.network"
# llm_cfsr with one part taken away or added.
ABLATION = {
    "without_embedding_level": [f"{_NETWORK}.fuse_embedding=false"],
    "without_sequence_level": [f"{_NETWORK}.fuse_sequence=false"],
    "without_prediction_level": [f"{_NETWORK}.fuse_prediction=false"],
    "without_cross_attention": [f"{_NETWORK}.fuse_{level}=false" for level in ("embedding", "sequence", "prediction")],
    "without_cold_weight": [f"{_NETWORK}.cold_shrinkage=null", f"{_NETWORK}.item_dropout=0"],
    "without_pca_start": [f"{_NETWORK}.pca_init=false"],
    "without_whitening": [f"{_NETWORK}.whiten=false"],
    "without_lexical_share": ["model.scorers.content.lexical_share=0"],
    "without_many_negatives": ["train.loss=bce"],
    "with_full_softmax": ["train.loss=full_softmax"],
    "with_in_batch_negatives": ["train.loss=in_batch"],
    "with_alignment": ["train.align=0.1"],
    "with_distillation": ["train.distil=0.1"],
}
# What is chosen after training, nothing trained again: features of llm_cfsr whose weight is set to 0, or all weights
# calibrated with another train.tail_tolerance.
REWEIGHED: dict[str, tuple[str, ...] | float] = {
    "without_content_match": ("content", "content_cold"),
    "without_cold_match": ("content_cold",),
    "without_transitions": ("transitions",),
    "without_either_match": ("content", "content_cold", "transitions"),
    "with_tail_tolerance_0": 0.0,
    "with_tail_tolerance_2": 0.02,
    "with_tail_tolerance_4": 0.04,
}


def _folder(dataset: str, name: str, seed: int) -> Path:
    return RUNS / dataset / f"{name}-{seed}"


def base_run(dataset: str, overrides: list[str]) -> Dataset:
    """Ingest, prepare and embed of a dataset, once."""
    config, run = Config.load(recipe_of(dataset), overrides), RUNS / dataset / "base"
    run_stages(config, run, ("ingest", "prepare"))
    if any((run / "ingest" / ITEMS).glob("*.parquet")):
        run_stages(config, run, ("embed",))
    return Dataset.load(run)


def variant(base: Dataset, name: str) -> Dataset:
    """The dataset with vectors that benchmarks/vectors.py made; it belongs to no run."""
    embedded = base.run / "variants" / name
    if not (embedded / VECTORS).is_dir():
        raise SystemExit(f"expected vectors in {embedded / VECTORS}, found none: run benchmarks/vectors.py first")
    return Dataset(base.prepared, embedded, base.max_length)


def measure_model(recipe: str, dataset: Dataset, name: str, model: str, seed: int, overrides: list[str]) -> list[dict]:
    """Fit and rank one model preset; its metric rows."""
    settings = [f"train.seed={seed}", f"model.name={name}", *overrides]
    config, folder = Config.load(recipe_of(recipe), settings, model), _folder(recipe, name, seed)
    if dataset.run is None and "content" in config.model.scorers:  # other vectors are compared by themselves
        config = config.with_settings({"model.scorers.content.lexical_share": 0.0})
    if not config.model.network:  # fitted in the time that reading it would take
        about = {"model": config.model.model_dump(), "train": config.train.model_dump(exclude={"device"})}
        return _rank(dataset, config, folder, lambda scratch: _fit(dataset, config, scratch)[0], about)
    _train(dataset, config, folder)
    return _rank(dataset, config, folder, lambda _: _load(config, folder / "train"), trained="train")


def measure_reweighed(recipe: str, dataset: Dataset, name: str, seed: int, overrides: list[str]) -> list[dict]:
    """Rank the trained llm_cfsr of a seed with other score weights; its metric rows."""
    settings = [f"train.seed={seed}", f"model.name={name}", *overrides]
    config, folder = Config.load(recipe_of(recipe), settings, FOCUS), _folder(recipe, name, seed)
    trained, change = _folder(recipe, FOCUS, seed) / "train", REWEIGHED[name]

    def reweighed(scratch: Path) -> Ensemble:
        model = _load(config, trained)
        if isinstance(change, tuple):
            none = dict.fromkeys(change, 0.0)
            by_rule = {rule: weights | none for rule, weights in model.history_weights.items()}
            model.set_weights(none)
            model.history_weights = by_rule
            return model
        files = validation_sample(dataset, scratch, config.train)
        batches = ValidationBatches(files, ranked_users(dataset.shape.n_items), model.device)
        tail = dataset.train_counts < config.evaluate.tail_item
        print(name, seed, calibrate(model, batches, tail, change, config.evaluate.exclude_history), flush=True)
        return model

    return _rank(dataset, config, folder, reweighed, {"reweighed": change}, f"../{trained.parent.name}/train")


def _train(dataset: Dataset, config: Config, folder: Path, stage: str = "train") -> None:
    """Write folder/train, the fitted model and the history of its training; folder/teacher if it is aligned to one."""
    teacher = config.with_model(config.train.align_to) if config.train.align_to else None
    if teacher:
        _train(dataset, teacher, folder, "teacher")

    def work(out: Path) -> dict:
        print(f"training {folder.name}: {config.model.name}", flush=True)
        table = None
        if teacher:
            network = _load(teacher, folder / "teacher").scorers["network"].network
            table = network.items.collaborative.weight.detach().cpu().numpy()
        model, history = _fit(dataset, config, out / ".checkpoints", table)
        shutil.rmtree(out / ".checkpoints")
        save_model(model, out, dataset.vocabulary.hash)
        write_json(out / TRAIN_HISTORY, history)
        return {"model": config.model.name, "epochs": len(history), "weights": model.weights}

    settings = {
        "model": config.model.trained_by(),
        "train": config.train.model_dump(exclude={"device"}),
        "exclude_history": config.evaluate.exclude_history,
        "tail_item": config.evaluate.tail_item,
    }
    if config.model.reads and dataset.embedded:
        parts = [path for name in (VECTORS, LEXICAL) for path in sorted((dataset.embedded / name).glob("*.parquet"))]
        settings["vectors"] = [sha256_file(path) for path in parts]
    inputs = {"../base/prepare": [VOCABULARY, SCHEMA, "train/", "valid/"]}
    if teacher:
        inputs["teacher"] = []
    run_stage(folder, stage, settings, inputs, work, resumable=True)


def _rank(
    dataset: Dataset,
    config: Config,
    folder: Path,
    model: Callable[[Path], Ensemble],
    about: dict | None = None,
    trained: str | None = None,
) -> list[dict]:
    """Write folder/evaluate: ranks and metric rows, which are returned.

    model: makes it, in a folder for temporary files. about: what it depends on beside `trained`, a stage seen from
    `folder`.
    """

    def scores() -> ScoreFunction:
        with tempfile.TemporaryDirectory() as scratch:
            return Ranker(model(Path(scratch)), bulk=True).by_history(_rule(config))

    def work(out: Path) -> dict:
        recipes = {config.model.name: scores}
        rows = measure(out, dataset, recipes, name=config.name, seed=config.train.seed, settings=config.evaluate)
        return {"recipe": config.model.name, "rows": len(rows)}

    settings = {"dataset": config.name, "recipe": config.model.name, "seed": config.train.seed}
    settings |= config.evaluate.model_dump(exclude={"baselines"}) | (about or {})
    inputs = {"../base/prepare": [VOCABULARY, SEQUENCES]}
    if trained:
        inputs[trained] = []
    run_stage(folder, "evaluate", settings, inputs, work)
    return json.loads((folder / "evaluate" / METRICS).read_text())


def _rule(config: Config) -> str:
    return history_rule(config.evaluate.exclude_history)


def _load(config: Config, folder: Path) -> Ensemble:
    return load_model(folder, device=str(choose_device(config.train.device)), allow=config.model.extensions)


def _fit(dataset: Dataset, config: Config, work: Path, table: np.ndarray | None = None) -> tuple[Ensemble, list[dict]]:
    """A fitted and calibrated model and the history of its training. table: of a teacher to align to."""
    return fit_model(
        config.model,
        config.train,
        dataset,
        work,
        item_table=table,
        exclude_history=config.evaluate.exclude_history,
        tail_item=config.evaluate.tail_item,
        report=lambda line: print(f"  {line}", flush=True),
    )


def store(rows: list[dict]) -> None:
    """Add rows to quality.json in the place of those of the same dataset, recipe and seed."""
    path = RESULTS / "quality.json"
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / ".lock", "w") as lock:  # several runs may end at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = json.loads(path.read_text()) if path.is_file() else []
        made = {(row["dataset"], row["recipe"], row["seed"]) for row in rows}
        kept = [row for row in old if (row["dataset"], row["recipe"], row["seed"]) not in made]
        write_json(path, sorted(kept + rows, key=lambda row: (row["dataset"], row["recipe"], row["seed"])))
        quality_tables.main()


def report() -> None:
    """docs/results: one page a dataset, with paired tests of llm_cfsr against the others of the same seed."""
    everything = json.loads((RESULTS / "quality.json").read_text())
    for dataset in dict.fromkeys(row["dataset"] for row in everything if row["recipe"] == FOCUS):
        config = Config.load(recipe_of(dataset))
        rows = [row for row in everything if row["dataset"] == dataset and "_on_" not in row["recipe"]]
        rows = with_history(rows, _rule(config))
        folder = RUNS / dataset
        seed = min(row["seed"] for row in rows if row["recipe"] == FOCUS)
        names = list(dict.fromkeys(row["recipe"] for row in rows))
        ablation = [name for name in names if name in (ABLATION | REWEIGHED)]
        comparisons, tests = {}, []
        for other in names:
            ranks = folder / f"{other}-{0 if other in CLOSED_FORM else seed}" / "evaluate" / RANKS
            if other == FOCUS or not ranks.is_file():
                continue
            paired = compare_runs(
                folder / f"{FOCUS}-{seed}" / "evaluate" / RANKS, FOCUS, ranks, other, folder / "base" / "prepare",
                config.evaluate,
            )  # fmt: skip
            tests += [{"dataset": dataset, "recipe": FOCUS, "against": other, "seed": seed, **row} for row in paired]
            if other in (BASE, "sasrec", "ease", "alphafuse"):
                comparisons[other] = paired
        write_json(RESULTS / f"paired-{dataset}.json", tests)
        curves = {
            name: json.loads(path.read_text())
            for name in names
            if (path := folder / f"{name}-{seed}" / "train" / TRAIN_HISTORY).is_file()
        }
        page = write_report(
            RESULTS / dataset,
            rows,
            title=f"{dataset}: ranking quality",
            focus=FOCUS,
            base=BASE if BASE in names else "sasrec",
            served=_rule(config),
            tied=said_ties(folder / "base"),
            histories=curves,
            ablation=ablation,
            comparisons=comparisons,
        )
        print(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument(
        "--ablation", nargs="*", choices=ABLATION, help="llm_cfsr (trained before) without these parts, or with others"
    )
    parser.add_argument("--vectors", help="train --models on the vectors <base>/variants/NAME of benchmarks/vectors.py")
    parser.add_argument("--name", help="what to call the one of --models, if --set makes it another")
    parser.add_argument("--closed-form", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.dataset:
        recipe, given = arguments.dataset, arguments.set
        base = base_run(recipe, given)
        for name in CLOSED_FORM if arguments.closed_form else ():
            store(measure_model(recipe, base, name, name, 0, given))
        for seed in arguments.seeds:
            for model in arguments.models:
                name = arguments.name or (f"{model}_on_{arguments.vectors}" if arguments.vectors else model)
                dataset = variant(base, arguments.vectors) if arguments.vectors else base
                store(measure_model(recipe, dataset, name, model, seed, given))
            for name in REWEIGHED if arguments.ablation is not None else ():
                store(measure_reweighed(recipe, base, name, seed, given))
            for name in arguments.ablation or ():
                store(measure_model(recipe, base, name, FOCUS, seed, [*given, *ABLATION[name]]))
        for path in sorted((RUNS / recipe).glob("*/train")):
            manifest = Manifest.load(path)
            print(path.parent.name, manifest.counts, f"{manifest.seconds:.0f} s")
    if arguments.report:
        report()


if __name__ == "__main__":
    with shown():
        main()
