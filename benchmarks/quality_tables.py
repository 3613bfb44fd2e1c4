"""docs/results/tables.md from docs/results/quality.json: means over seeds, one table a data set and protocol.

    python benchmarks/quality_tables.py

benchmarks/quality.py calls it after every run. A cell is HR@10 / NDCG@10; if there are several seeds, their mean
and in brackets the standard deviation of both.
"""

import json
from pathlib import Path

import pandas as pd

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import history_rule
from llmcfsr_merlin.evaluation.groups import with_history

RESULTS = Path("docs/results")
GROUPS = ("overall", "tail_item", "head_item", "tail_user", "head_user")
PROTOCOLS = {"full": "full ranking", "sampled": "1 positive, 100 uniform negatives"}
PARTS = {
    "models": lambda name: "_on_" not in name and not name.startswith(("without_", "with_")),
    "vectors (without_lexical_share on others; itself: MiniLM as it comes)": lambda name: "_on_" in name,
    "ablation (llm_cfsr without a part, or with another)": lambda name: name.startswith(("without_", "with_")),
}


ID_ONLY = ("popularity", "item_knn", "ease", "sasrec", "bert4rec", "gru4rec")
FOCUS, BASE = "llm_cfsr", "llm_esr"
# What was aimed at: protocol, group, metric, the better of which recipes, relative difference.
GOALS = [
    ("sampled", "overall", "hr@10", (BASE,), 0.10),
    ("sampled", "overall", "ndcg@10", (BASE,), 0.10),
    ("sampled", "tail_item", "hr@10", (BASE,), 1.0),
    ("sampled", "head_item", "hr@10", (BASE,), 0.0),
    ("full", "overall", "ndcg@10", ID_ONLY, 0.15),
]


def recipe_of(dataset: str) -> str | Path:
    """A recipe beside this script, or one that ships."""
    path = Path(__file__).parent / f"{dataset}.yaml"
    return path if path.is_file() else dataset


def served(dataset: str) -> str:
    """The history rule that the recipe serves by."""
    return history_rule(Config.load(recipe_of(dataset)).evaluate.exclude_history)


def goals(frame: pd.DataFrame) -> list[str]:
    """Markdown table of what llm_cfsr reaches of the goals on one data set and history rule, by means over seeds."""
    means = frame.groupby(["protocol", "group", "metric", "recipe"])["value"].mean()
    lines = ["| protocol | group | metric | llm_cfsr | against | relative | goal | |", "|---" * 8 + "|"]
    for protocol, group, metric, others, wanted in GOALS:
        of_group = means.xs((protocol, group, metric), level=("protocol", "group", "metric"))
        known = of_group.reindex(others).dropna()
        if FOCUS not in of_group or known.empty:
            continue
        ours, other = of_group[FOCUS], known.idxmax()
        found = ours / known[other] - 1
        lines.append(
            f"| {protocol} | {group} | {metric} | {ours:.4f} | {other} {known[other]:.4f} | {found:+.1%} "
            f"| {wanted:+.0%} | {'reached' if found >= wanted else 'missed'} |"
        )
    return lines


def tables(rows: list[dict]) -> str:
    """Markdown of all metric rows of quality.json."""
    rules = {dataset: served(dataset) for dataset in dict.fromkeys(row["dataset"] for row in rows)}
    frame = pd.DataFrame([known for row in rows for known in with_history([row], rules[row["dataset"]])])
    frame = frame[frame["group"].isin(GROUPS) & frame["metric"].isin(("hr@10", "ndcg@10"))]
    text = [
        "# Result tables", "",
        "Made by `benchmarks/quality_tables.py` from `quality.json`; what to read from them: [README.md](README.md).",
        "HR@10 / NDCG@10, mean of the seeds; in brackets their standard deviation. History: masked, the user's own",
        "items are left out of full ranking; kept, they are ranked too; first the rule that the recipe serves by.", "",
    ]  # fmt: skip
    for dataset, of_dataset in frame.groupby("dataset"):
        if FOCUS in set(of_dataset["recipe"]):
            of_rule = of_dataset[of_dataset["history"] == rules[dataset]]
            text += [f"## {dataset}: goals", "", *goals(of_rule), ""]
        for part, belongs in PARTS.items():
            chosen = of_dataset[of_dataset["recipe"].map(belongs)]
            if chosen.empty:
                continue
            if part != "models":  # what it is compared with
                whole = "without_lexical_share" if part.startswith("vectors") else FOCUS
                chosen = pd.concat([of_dataset[of_dataset["recipe"] == whole], chosen])
            for protocol, name in PROTOCOLS.items():
                lines = _table(chosen[chosen["protocol"] == protocol], rules[dataset])
                text += [f"## {dataset}, {name}: {part}", "", *lines, ""]
    return "\n".join(text)


def _table(frame: pd.DataFrame, first: str) -> list[str]:
    if frame.empty:
        return ["not measured"]
    counts = frame.groupby("group")["count"].first()
    groups = [group for group in GROUPS if group in counts]
    lines = ["| model | history | seeds | " + " | ".join(f"{group} ({counts[group]:,})" for group in groups) + " |"]
    lines.append("|---" * (len(groups) + 3) + "|")
    for rule in sorted(frame["history"].unique(), key=lambda rule: rule != first):
        of_rule = frame[frame["history"] == rule]
        found = of_rule.groupby(["recipe", "group", "metric"])["value"].agg(["mean", "std"])
        seeds = of_rule.groupby("recipe")["seed"].nunique()
        overall = found["mean"].xs(("overall", "ndcg@10"), level=("group", "metric")).sort_values(ascending=False)
        for recipe in overall.index:
            cells = [
                _cell(*(found.loc[(recipe, group, metric)] for metric in ("hr@10", "ndcg@10"))) for group in groups
            ]
            lines.append(f"| {recipe} | {rule} | {seeds[recipe]} | " + " | ".join(cells) + " |")
    return lines


def _cell(hr: pd.Series, ndcg: pd.Series) -> str:
    value = f"{hr['mean']:.4f} / {ndcg['mean']:.4f}"
    return value if pd.isna(hr["std"]) else f"{value} ({hr['std']:.4f} / {ndcg['std']:.4f})"


def main() -> None:
    (RESULTS / "tables.md").write_text(tables(json.loads((RESULTS / "quality.json").read_text())))


if __name__ == "__main__":
    main()
