"""A shop of a few days: a log with times, cut into files, and its items."""

import json
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from tests.worlds import attribute_world

START, DAY = 1_700_000_000, 86_400
QUICK = {
    "train.epochs": 2, "train.device": "cpu", "model.scorers.network.hidden": 16, "prepare.max_length": 12,
    "prepare.filter": "none", "embed.max_tokens": 24, "evaluate.baselines": [], "update.held_out": 0.5,
}  # fmt: skip


def write_days(folder: Path, users: int = 160, items: int = 60) -> dict[str, dict]:
    """Write base.csv, day1.csv and day2.csv (each user's last two interactions, some users new), items.jsonl; returns
    the attributes of all items. Items from i0056 on occur from day1 on."""
    sequences, attributes = attribute_world(users, items)
    logs: dict[str, list[tuple]] = {"base": [], "day1": [], "day2": []}
    for number, (user, sequence) in enumerate(sequences.items()):
        for place, item in enumerate(sequence):
            left = len(sequence) - place
            if left > 2 and number % 10 and item < "i0056":
                logs["base"].append((user, item, START + place * 60 + number))
            elif left == 2 or left > 2:
                logs["day1"].append((user, item, START + DAY + place * 60 + number))
            else:
                logs["day2"].append((user, item, START + 2 * DAY + place * 60 + number))
    for name, rows in logs.items():
        lines = ["user_id,item_id,timestamp", *(",".join(map(str, row)) for row in rows)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    rows = [{"item_id": item, **of} for item, of in attributes.items()]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return attributes


def shop(folder: Path, model: str | None = None, **settings) -> Config:
    data = {"data.interactions": [str(folder / "base.csv")], "data.items": [str(folder / "items.jsonl")]}
    config = Config.load(None, ["name=shop"], model)
    return config.with_settings({**data, **QUICK, **settings} if config.model.network else {**data, **settings})
