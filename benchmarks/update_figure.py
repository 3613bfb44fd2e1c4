"""Draws benchmarks/results/update.json: quality on the next slice, and the processor time of each slice.

python benchmarks/update_figure.py benchmarks/results/update.json docs/results/update.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

ARMS = {"updated": ("updated each day", "#1b6ca8"), "anew": ("trained anew each day", "#e07b39"),
        "never": ("never updated", "#8a8a8a")}  # fmt: skip


def draw(rows: list[dict], path: Path) -> None:
    """rows: as benchmarks/update.py writes them, of one data set."""
    days = sorted({row["day"] for row in rows})
    figure, (quality, cost) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=[3, 2], layout="constrained")
    for arm, (label, colour) in ARMS.items():
        values = [[row["next"][arm]["ndcg@10"] for row in rows if row["day"] == day] for day in days]
        means = [np.mean(of_day) for of_day in values]
        quality.plot(days, means, marker="o", color=colour, label=label, zorder=3 if arm == "updated" else 2)
        lows, highs = zip(*((min(of_day), max(of_day)) for of_day in values))
        quality.fill_between(days, lows, highs, color=colour, alpha=0.15, linewidth=0)
    seeds = len({row["seed"] for row in rows})
    quality.set_title(f"{rows[0]['set']}: model of the day before, {seeds} seed{'s' * (seeds > 1)}", loc="left")
    quality.set_xlabel("slice that is ranked")
    quality.set_ylabel("NDCG@10, each interaction of the slice")
    quality.set_xticks(days)
    quality.legend(frameon=False)
    timed = days[1:]
    bottom = np.zeros(len(timed))
    stages = {
        "training": ("train",), "data": ("ingest", "prepare", "embed", "yesterday"), "measuring": ("day", "evaluate")
    }  # fmt: skip
    for (label, names), shade in zip(stages.items(), (1.0, 0.6, 0.3)):
        means = [np.mean([sum(row["update_seconds"][name] for name in names) for row in rows if row["day"] == day])
                 for day in timed]  # fmt: skip
        cost.bar(np.array(timed) - 0.2, means, 0.38, bottom, color=ARMS["updated"][1], alpha=shade, label=label)
        bottom += means
    anew = [np.mean([row["anew_seconds"] for row in rows if row["day"] == day]) for day in timed]
    cost.bar(np.array(timed) + 0.2, anew, 0.38, color=ARMS["anew"][1], label="training anew")
    cost.legend(frameon=False, fontsize=8)
    cost.set_title("processor seconds of a day", loc="left", fontsize=10)
    cost.set_xlabel("slice that is learned")
    cost.set_xticks(timed)
    for axis in (quality, cost):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    draw([row for row in json.loads(source.read_text())["rows"] if row["set"] == "ml_100k"], target)
