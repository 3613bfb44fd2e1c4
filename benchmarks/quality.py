"""Ranking quality of the models by dataset and seed, on one prepared run, into docs/results/quality.json.

    LLMCFSR_DATA=../shared/data python benchmarks/quality.py beauty --models llm_cfsr sasrec --seeds 1 2 3
    python benchmarks/quality.py beauty --ablation without_embedding_level with_full_softmax
    python benchmarks/quality.py beauty --models llm_cfsr --vectors tfidf --seeds 1 2 3     # on vectors of vectors.py
    python benchmarks/quality.py beauty --closed-form                                       # popularity, kNN, EASE
    python benchmarks/quality.py --report                                                   # page, figures and tests

Ingest, prepare and embed are made once a dataset (runs/quality/<dataset>/base); all models read them and are ranked on
the same stored candidates. What is already trained is skipped. Settings are those of the recipe and the model file; no
search has been made. The epoch and gamma are selected on validation; the test items are read here. The papers' own
files have recipes beside this script: paper_yelp and paper_fashion (ids only).
"""

import argparse
import fcntl
import json
import shutil
import tempfile
from pathlib import Path

import quality_tables
from llmcfsr_merlin.pipelines import run_stages

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.schema import CLOSED_FORM
from llmcfsr_merlin.dataset.names import METRICS, RANKS, TRAIN_HISTORY, VECTORS, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation.measure import compare_runs
from llmcfsr_merlin.evaluation.report.page import write_report
from llmcfsr_merlin.runtime.stage import Manifest, hash_json, seal, sha256_file, write_json
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.training.train import choose_weights, validation_sample
from llmcfsr_merlin.training.trainer import load_schema

RUNS, RESULTS = Path("runs/quality"), Path("docs/results")
FOCUS, BASE = "llm_cfsr", "llm_esr"
# llm_cfsr with one part taken away or added.
ABLATION = {
    "without_embedding_level": ["model.fuse_embedding=false"],
    "without_sequence_level": ["model.fuse_sequence=false"],
    "without_prediction_level": ["model.fuse_prediction=false"],
    "without_cross_attention": [f"model.fuse_{level}=false" for level in ("embedding", "sequence", "prediction")],
    "without_cold_weight": ["model.cold_shrinkage=null", "model.item_dropout=0"],
    "without_pca_start": ["model.pca_init=false"],
    "without_whitening": ["model.whiten=false"],
    "without_lexical_share": ["model.lexical_share=0"],
    "without_many_negatives": ["train.loss=bce"],
    "with_full_softmax": ["train.loss=full_softmax"],
    "with_in_batch_negatives": ["train.loss=in_batch"],
    "with_alignment": ["train.align=0.1"],
    "with_distillation": ["train.distil=0.1"],
}
# What is chosen after training, nothing trained again: weights of llm_cfsr set to zero, or chosen with another price of
# the tail (train.tail_tolerance).
REWEIGHED = {
    "without_content_match": ("gamma", "cold_gamma"),
    "without_cold_match": ("cold_gamma",),
    "without_transitions": ("transition_gamma",),
    "without_either_match": ("gamma", "cold_gamma", "transition_gamma"),
    "with_tail_tolerance_0": 0.0,
    "with_tail_tolerance_2": 0.02,
    "with_tail_tolerance_4": 0.04,
}


def _recipe(dataset: str) -> str | Path:
    """A recipe beside this script, or one that ships."""
    path = Path(__file__).parent / f"{dataset}.yaml"
    return path if path.is_file() else dataset


def base_run(dataset: str, overrides: list[str]) -> Path:
    """Ingest, prepare and embed of a dataset, once."""
    directory = RUNS / dataset / "base"
    config = Config.load(_recipe(dataset), overrides)
    run_stages(config, directory, ("ingest", "prepare", "embed") if config.data.items else ("ingest", "prepare"))
    return directory


def measure_model(
    dataset: str, base: Path, name: str, model: str, seed: int, overrides: list[str], vectors: str | None = None
) -> list[dict]:
    """Train and evaluate one model; its metric rows. vectors: a variant of benchmarks/vectors.py, None: the base's."""
    directory = RUNS / dataset / f"{name}-{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    if vectors and not (directory / "embed").exists():
        _variant(base / "variants" / vectors / VECTORS, directory / "embed")
    for stage in ("ingest", "prepare", "embed"):
        if not (directory / stage).exists() and (base / stage).exists():
            (directory / stage).symlink_to((base / stage).resolve())
    settings = [f"train.seed={seed}", f"model.name={name}", "evaluate.baselines=[]", *overrides]
    run_stages(Config.load(_recipe(dataset), settings, model), directory, ("train", "evaluate"))
    return json.loads((directory / "evaluate" / METRICS).read_text())


def measure_reweighed(dataset: str, base: Path, name: str, seed: int, overrides: list[str]) -> list[dict]:
    """Evaluate the trained llm_cfsr of a seed with other weights of the matches; its metric rows."""
    directory, trained = RUNS / dataset / f"{name}-{seed}", RUNS / dataset / f"{FOCUS}-{seed}" / "train"
    if not (directory / "train").exists():
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copytree(trained, directory / "train")
        vocabulary = Vocabulary.load(trained / VOCABULARY)
        network = load_model(trained, vocabulary.hash)
        if name.startswith("without"):
            for buffer in REWEIGHED[name]:
                getattr(network, buffer).zero_()
        else:
            config, prepared = Config.load(_recipe(dataset), overrides, FOCUS), base / "prepare"
            with tempfile.TemporaryDirectory() as work:
                files = validation_sample(prepared, Path(work), config.train)
                tail = vocabulary.train_counts < config.evaluate.tail_item
                chosen = choose_weights(
                    network, files, load_schema(prepared), tail, REWEIGHED[name], config.evaluate.exclude_history
                )
            print(name, seed, chosen)
        save_model(network, directory / "train", vocabulary.hash)
        seal(directory / "train", "train", hash_json([Manifest.load(trained).key, name]), {"model": name})
        (directory / "prepare").symlink_to((base / "prepare").resolve())
    settings = [f"train.seed={seed}", f"model.name={name}", "evaluate.baselines=[]", *overrides]
    run_stages(Config.load(_recipe(dataset), settings, FOCUS), directory, ("evaluate",))
    return json.loads((directory / "evaluate" / METRICS).read_text())


def _variant(vectors: Path, embed: Path) -> None:
    """Vectors that benchmarks/vectors.py made, as a finished stage embed."""
    if not vectors.is_dir():
        raise SystemExit(f"expected vectors in {vectors}, found none: run benchmarks/vectors.py first")
    shutil.copytree(vectors, embed / VECTORS)
    key = hash_json([sha256_file(part) for part in sorted(vectors.iterdir())])
    seal(embed, "embed", key, {"variant": str(vectors)})


def closed_form(dataset: str, base: Path, overrides: list[str]) -> list[dict]:
    """The baselines without a network; they need a trained model beside them only because the stage does."""
    names = ", ".join(CLOSED_FORM)
    settings = ["train.seed=0", "train.epochs=1", "model.name=untrained", f"evaluate.baselines=[{names}]", *overrides]
    directory = RUNS / dataset / "closed-form"
    directory.mkdir(parents=True, exist_ok=True)
    for stage in ("ingest", "prepare", "embed"):
        if not (directory / stage).exists() and (base / stage).exists():
            (directory / stage).symlink_to((base / stage).resolve())
    run_stages(Config.load(_recipe(dataset), settings, "sasrec"), directory, ("train", "evaluate"))
    rows = json.loads((directory / "evaluate" / METRICS).read_text())
    return [row for row in rows if row["recipe"] in CLOSED_FORM]


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
        rows = [row for row in everything if row["dataset"] == dataset and "_on_" not in row["recipe"]]
        config = Config.load(_recipe(dataset))
        folder = RUNS / dataset
        seed = min(row["seed"] for row in rows if row["recipe"] == FOCUS)
        names = list(dict.fromkeys(row["recipe"] for row in rows))
        ablation = [name for name in names if name in (ABLATION | REWEIGHED)]
        comparisons, tests = {}, []
        for other in names:
            run = "closed-form" if other in CLOSED_FORM else f"{other}-{seed}"
            ranks = folder / run / "evaluate" / RANKS
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
            exclude_history=config.evaluate.exclude_history,
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
    parser.add_argument("--name", help="what to call the one of --models, where --set makes it another")
    parser.add_argument("--closed-form", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.dataset:
        base = base_run(arguments.dataset, arguments.set)
        if arguments.closed_form:
            store(closed_form(arguments.dataset, base, arguments.set))
        for seed in arguments.seeds:
            for model in arguments.models:
                name = arguments.name or (f"{model}_on_{arguments.vectors}" if arguments.vectors else model)
                store(measure_model(arguments.dataset, base, name, model, seed, arguments.set, arguments.vectors))
            for name in REWEIGHED if arguments.ablation is not None else ():
                store(measure_reweighed(arguments.dataset, base, name, seed, arguments.set))
            for name in arguments.ablation or ():
                changed = [*arguments.set, *ABLATION[name]]
                store(measure_model(arguments.dataset, base, name, FOCUS, seed, changed))
        for path in sorted((RUNS / arguments.dataset).glob("*/train")):
            manifest = Manifest.load(path)
            print(path.parent.name, manifest.counts, f"{manifest.seconds:.0f} s")
    if arguments.report:
        report()


if __name__ == "__main__":
    main()
