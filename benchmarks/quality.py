"""Ranking quality of all models on a dataset and split, into docs/results: one command that goes on where it stopped.

    export LLMCFSR_DATA=../shared/data
    python benchmarks/quality.py ml_100k --split loo temporal --seeds 1 2 3       # all models, the fastest first
    python benchmarks/quality.py beauty --models llm_cfsr sasrec --seeds 1 2 3 --trials 8
    python benchmarks/quality.py beauty --models --ablation --seeds 1 2 3          # parts of llm_cfsr, without training
    python benchmarks/quality.py beauty --models --ablation without_embedding_level with_full_softmax
    python benchmarks/quality.py beauty --models llm_cfsr --vectors tfidf --seeds 1 2 3     # vectors of vectors.py
    python benchmarks/quality.py --pages                                           # pages and figures of all rows

All models of a dataset and split are fitted on the same data and ranked on the same candidates, by both history rules,
each with score weights of its own. Equal terms: every model is given the same number of trials (--trials, settings of
quality_space.yaml, by validation items; 1 is its own settings alone), and with --epochs the same most epochs and
patience. Rows are added as each model and seed ends (quality_rows.py); a finished one is skipped, a stopped training
goes on from its last epoch. The test items are read once a model and seed, here. The papers' own files have recipes
beside this script: paper_yelp and paper_fashion (ids only).
"""

import argparse
from pathlib import Path

import quality_pages
from quality_pages import FOCUS, OF_IDS
from quality_rows import RESULTS, result_rows, store
from quality_runs import SPLITS, Bench, Change, Result

from llmcfsr_merlin.cli.log import shown

CLOSED_FORM = ("popularity", "item_knn", "ease")  # the same for every seed
MODELS = (
    *CLOSED_FORM, "gru4rec", "sasrec", "llm_init", "alphafuse", "llm_esr", "llm_cfsr", "bert4rec", "llmemb",
    "two_tower_ssl", "sasrec_prefix", "bsarec", "cl4srec", "caser", "asrep", "s3rec", "melt", "cities",
    "emkd", "said", "tslrec",
)  # fmt: skip
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
_TRANSITIONS = ("transitions", "transitions_borrowed", "co_occurrence")
_REPEATS = ("repeat", "repeat_times", "repeat_recent")
# What is chosen after training, nothing trained again.
REWEIGHED: dict[str, Change] = {
    "without_content_match": ("content", "content_cold"),
    "without_cold_match": ("content_cold",),
    "without_transitions": ("transitions", "transitions_borrowed"),
    "without_co_occurrence": ("co_occurrence",),
    "without_either_match": ("content", "content_cold", *_TRANSITIONS),
    "without_popularity": ("popularity",),
    "without_repeats": _REPEATS,
    "without_other_scorers": ("content", "content_cold", *_TRANSITIONS, "popularity", *_REPEATS),
    "with_tail_tolerance_0": 0.0,
    "with_tail_tolerance_2": 0.02,
    "with_tail_tolerance_4": 0.04,
    "with_plain_popularity": {"popularity": {"decay": 1.0}},
}


def keep(bench: Bench, model: str, seed: int, result: Result, folder: Path) -> None:
    """Add what a model and seed gave to the files of results."""
    rows, given, tried = result
    made = {key: given[key] for key in ("version", "commit")}
    of = {"dataset": rows[0]["dataset"], "split": bench.split, "model": model}
    store("results.csv.gz", result_rows(rows, bench.split, made), folder)
    store("runs.csv", [{**of, "seed": seed, **given}], folder)
    store("trials.csv", [{**of, **trial} for trial in tried], folder)
    print(f"{of['dataset']} {bench.split} {model} seed {seed}: {len(rows)} rows", flush=True)


def measure(bench: Bench, arguments: argparse.Namespace) -> None:
    base = bench.base()
    dataset = bench.variant(base, arguments.vectors) if arguments.vectors else base
    models = list(MODELS) if arguments.models is None else arguments.models
    if base.embedded is None:  # a log without texts
        configs = {model: bench.config(model) for model in models}
        language = ("texts", "interests")
        models = [name for name, one in configs.items() if not one.model.reads and one.train.pretrain not in language]
    for place, seed in enumerate(arguments.seeds):
        for model in models:
            if model in CLOSED_FORM and place:
                continue
            name = arguments.name or (f"{model}_on_{arguments.vectors}" if arguments.vectors else model)
            at = 0 if model in CLOSED_FORM else seed
            keep(bench, name, at, bench.measure(dataset, name, model, at), arguments.out)
        for name in REWEIGHED if arguments.ablation is not None else ():
            keep(bench, name, seed, bench.reweigh(base, name, FOCUS, seed, REWEIGHED[name]), arguments.out)
        for name in arguments.ablation or ():
            keep(bench, name, seed, bench.measure(base, name, FOCUS, seed, *ABLATION[name]), arguments.out)
        store("paired.csv.gz", bench.pairs(base, FOCUS) or bench.pairs(base, OF_IDS), arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=["loo"])
    parser.add_argument("--models", nargs="*", help=f"default: all ({' '.join(MODELS)})")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--trials", type=int, default=1, help="settings that each model may try on validation items")
    parser.add_argument("--epochs", type=int, help="most epochs of every model, and its patience (default: presets')")
    parser.add_argument(
        "--ablation", nargs="*", choices=ABLATION, help="llm_cfsr (trained before) without these parts, or with others"
    )
    parser.add_argument("--vectors", help="train --models on the vectors <base>/variants/NAME of benchmarks/vectors.py")
    parser.add_argument("--name", help="what to call the one of --models, if --set makes it another")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--pages", action="store_true")
    arguments = parser.parse_args()
    given = list(arguments.set)
    if arguments.epochs:
        given += [f"train.epochs={arguments.epochs}", f"train.patience={arguments.epochs}"]
    for split in arguments.split if arguments.dataset else ():
        measure(Bench(arguments.dataset, split, tuple(given), arguments.trials), arguments)
    if arguments.pages:
        quality_pages.write(arguments.out)


if __name__ == "__main__":
    with shown():
        main()
