"""Days of a log with real times: updating yesterday's model, training anew each day, and doing nothing, side by side.

    python benchmarks/update.py --data DATA --sets ml_100k --seeds 1 2 3 --work WORK --out results/update.json

The log is cut at days into a base and `--days` slices of about as many interactions each. After each slice the model is
updated (`llmcfsr update` without its server), and another one is trained anew on the very same rows, validation and
vocabulary, from random weights, by the recipe's whole schedule. Both, and the base model that nothing updated (it knows
new items by their text), rank each interaction of the next slice among the same items. Seconds are processor time of
this process, since the machine was not idle: `update` is all stages, `anew` the fit alone.
"""

import argparse
import json
import logging
import shutil
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import DAY, METRICS, RANKS, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation.measure import measure
from llmcfsr_merlin.evaluation.ranks import read_ranks
from llmcfsr_merlin.evaluation.significance import compare, distinct_cases
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.runtime.manifest import seal
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.training.fit import fit_model
from llmcfsr_merlin.update import model_stages
from llmcfsr_merlin.update.gate import quality
from llmcfsr_merlin.update.update import update

DATA = {  # folder of LLMCFSR_DATA, share of the interactions in the base, settings
    "ml_100k": ("ml_100k", 0.65, {"evaluate.exclude_history": True, "prepare.max_length": 30}),
    "all_beauty": ("raw_amazon2018_all_beauty", 0.6, {}),
    "gift_cards": ("raw_amazon2018_gift_cards", 0.6, {}),
}
LEARNED = ("ingest", "prepare", "embed", "yesterday", "train")  # without its measurements
STAGES = ("ingest", "prepare", "embed", "yesterday", "day", "train", "evaluate")


def cut(folder: Path, share: float, days: int, out: Path) -> list[dict]:
    """Write base.csv and day1.csv, ... of a log, cut between two days; returns what each slice holds."""
    log = pd.read_csv(folder / "interactions.csv.gz").sort_values("timestamp", kind="stable")
    date = log["timestamp"] // 86_400
    counts = date.value_counts().sort_index().cumsum() / len(log)
    edges = [share + (1 - share) * number / days for number in range(days + 1)]
    lasts = [int(counts.index[min(np.searchsorted(counts.to_numpy(), edge), len(counts) - 1)]) for edge in edges]
    found, seen = [], set()
    for number, last in enumerate(lasts):
        part = log[(date <= last) & (date > lasts[number - 1])] if number else log[date <= last]
        part.to_csv(out / (f"day{number}.csv" if number else "base.csv"), index=False)
        users = set(part["user_id"])
        found.append(
            {
                "days": int((part["timestamp"] // 86_400).nunique()), "interactions": len(part), "users": len(users),
                "new_users": len(users - seen),
            }
        )  # fmt: skip
        seen |= users
    return found


def fit_anew(config: Config, run: Path) -> tuple[object, float]:
    """A model from random weights on the rows that an update has; its processor seconds. Score weights are calibrated
    under the same condition as in the update, else they are the base's."""
    dataset = Dataset(run / "prepare", run / "embed", config.prepare.max_length)
    start = load_model(run / model_stages.GROWN, dataset.vocabulary.hash)
    trained = load_model(run / "train", dataset.vocabulary.hash)
    work = run / ".anew"
    shutil.rmtree(work, ignore_errors=True)
    began = time.process_time()
    model, _ = fit_model(
        config.model, config.train, dataset, work, exclude_history=config.evaluate.exclude_history,
        tail_item=config.evaluate.tail_item,
    )  # fmt: skip
    seconds = time.process_time() - began
    if trained.weights == start.weights:  # too few held-out interactions to calibrate on
        model.set_weights(start.weights)
        model.history_weights = start.history_weights
    shutil.rmtree(work)
    return model, seconds


def paired(config: Config, run: Path, asked: Path) -> dict:
    """NDCG@10 of the updated model minus that of the one trained anew, users as the unit: 95% interval."""
    rule = config.evaluate.history
    ours = read_ranks(run / model_stages.ASKED / RANKS, model_stages.GROWN, rule)
    theirs = read_ranks(asked / RANKS, "anew", rule)
    rows = compare(ours, theirs, {"overall": np.ones(len(distinct_cases(theirs)), bool)}, (10,))
    row = next(row for row in rows if (row["history"], row["metric"]) == (rule, "ndcg@10"))
    return {name: row[name] for name in ("difference", "low", "high", "count")}


def keep(model, run: Path, folder: Path) -> None:
    """A sealed folder with `prepare`'s vocabulary, from which `grow` goes on as from a run."""
    out = folder / "train"
    shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copytree(run / "prepare", folder / "prepare")
    shutil.copy2(run / "prepare" / VOCABULARY, out / VOCABULARY)
    save_model(model, out, Vocabulary.load(out / VOCABULARY).hash)
    seal(out, "train", f"{run}", {})


def ask(config: Config, run: Path, models: dict[str, Path], out: Path) -> dict[str, dict]:
    """NDCG@10 and HR@10 of models on the interactions of a run's day, by the deployment's history rule; with them
    those of the updated one, which the update has measured on the same cases."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    dataset = Dataset(run / "prepare" / DAY, run / "embed", config.prepare.max_length)
    settings = config.evaluate.model_copy(update={"protocols": ("full",), "shuffle_test": False})
    ranked = {name: partial(model_stages.ranker, config, folder) for name, folder in models.items()}
    measure(out, dataset, ranked, name=config.name, seed=config.train.seed, settings=settings)
    rule = config.evaluate.history
    rows = [row for folder in (out, run / model_stages.ASKED) for row in json.loads((folder / METRICS).read_text())]
    found: dict[str, dict] = {name: {} for name in ("updated", *models)}
    for row in rows:
        row["recipe"] = row["recipe"].replace(model_stages.GROWN, "updated")
        wanted = row["protocol"] == "full" and row["group"] == "overall" and row["metric"] in ("ndcg@10", "hr@10")
        if wanted and row["history"] == rule:
            found[row["recipe"]] |= {row["metric"]: row["value"], "count": row["count"]}
    return found


def week(name: str, seed: int, days: int, work: Path, overrides: list[str], data: Path, one_day: bool) -> list[dict]:
    folder, share, settings = DATA[name]
    work = work / f"{name}-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    slices = cut(data / folder, share, days, work)
    items = data / folder / "items.jsonl.gz"
    config = Config.load(None, [f"name={name}", *overrides]).with_settings(
        {
            "data.interactions": [str(work / "base.csv")], "data.items": [str(items)], "evaluate.baselines": [],
            "update.check_served": False, "train.seed": seed, "train.device": "cpu",
            "train.procedure": "transformers", "train.batch_size": 16, "model.scorers.network.hidden": 32, **settings,
        }
    )  # fmt: skip
    began = time.process_time()
    run_stages(config, work / "base", ("ingest", "prepare", "embed", "train"))
    base_seconds = time.process_time() - began
    kept = work / "rows.json"  # a week that was stopped goes on after its last whole day
    rows = json.loads(kept.read_text()) if kept.is_file() else []
    if rows:
        base_seconds = rows[0]["base_seconds"]
    for number in range(len(rows) + 1, days + 1):
        run, previous = work / f"day{number}", work / (f"day{number - 1}" if number > 1 else "base")
        arms = {"anew": work / f"anew{number - 1}", "never": work / f"never{number - 1}"}
        if number == 1:
            arms = dict.fromkeys(arms, previous)
        seconds = {}
        for stage in STAGES:
            began = time.process_time()
            update(config, (str(work / f"day{number}.csv"),), previous, run, stages=(stage,))
            seconds[stage] = round(time.process_time() - began, 2)
        row = {"set": name, "seed": seed, "day": number, **slices[number], "new_items": _new_items(run)}
        grown = {}
        for arm, folder in arms.items():  # with the day's new items, as the updated one
            shutil.rmtree(run / f".{arm}", ignore_errors=True)
            (run / f".{arm}").mkdir()
            for stage in ("ingest", "prepare", "embed"):
                (run / f".{arm}" / stage).symlink_to(run / stage)
            model_stages.grow(config, folder, run / f".{arm}", None)
            grown[arm] = run / f".{arm}" / model_stages.GROWN
        if number == 1:  # all are the base
            del grown["never"]
        row["next"] = ask(config, run, grown, work / "asked")
        row["next"].setdefault("never", row["next"]["updated"])
        row["paired"] = paired(config, run, work / "asked")
        row["update_seconds"] = seconds
        row["gate"] = quality(config, run)
        model, row["anew_seconds"] = fit_anew(config, run)
        keep(model, run, work / f"anew{number}")
        never = load_model(run / ".never" / model_stages.GROWN, Vocabulary.load(run / "prepare" / VOCABULARY).hash)
        keep(never, run, work / f"never{number}")
        row |= {"anew_seconds": round(row["anew_seconds"], 1), "base_seconds": round(base_seconds, 1)}
        rows.append(row)
        kept.write_text(json.dumps(rows))
        print(json.dumps(row), flush=True)
        if one_day:
            break
    return rows


def _new_items(run: Path) -> int:
    return json.loads((run / "prepare" / "manifest.json").read_text())["counts"]["new_items"]


def mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 2)


def summary(rows: list[dict]) -> dict:
    """Means over days from the second on (on the first all arms are the base model) and seeds, by set."""
    found = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        some = [row for row in rows if row["set"] == name and row["day"] > 1]
        if not some:
            continue
        values = {
            arm: float(np.mean([row["next"][arm]["ndcg@10"] for row in some])) for arm in ("updated", "anew", "never")
        }
        seeds = sorted({row["seed"] for row in some})
        by_seed = {
            arm: [
                float(np.mean([row["next"][arm]["ndcg@10"] for row in some if row["seed"] == seed])) for seed in seeds
            ]
            for arm in values
        }
        found[name] = {
            "ndcg@10": values, "by_seed": by_seed, "lost": 1 - values["updated"] / values["anew"],
            "seeds": len(seeds), "days": len({row["day"] for row in some}),
            "seconds": {
                "update": mean([sum(row["update_seconds"].values()) for row in some]),
                "update, training": mean([row["update_seconds"]["train"] for row in some]),
                "update, what it learns from": mean(
                    [sum(row["update_seconds"][stage] for stage in LEARNED) for row in some]
                ),
                "anew, training": mean([row["anew_seconds"] for row in some]),
            },
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=["ml_100k"], choices=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help="one more day of each week, which goes on at the next call")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    for module in ("training.plain_trainer", "text.embed_stage", "serving.export_stage", "evaluation.evaluate_stage"):
        import_module(f"llmcfsr_merlin.{module}")  # no day is charged for what is imported once
    rows = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            rows += week(name, seed, arguments.days, arguments.work, arguments.overrides, arguments.data, arguments.one)
            if arguments.out:
                arguments.out.write_text(json.dumps({"summary": summary(rows), "rows": rows}, indent=1) + "\n")
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
