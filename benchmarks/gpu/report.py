"""The figures of a run of the GPU kit beside their goals, as a table.

python benchmarks/gpu/report.py OUT/gpu.json           # print it
python benchmarks/gpu/report.py OUT/gpu.json --save    # and keep it: benchmarks/results/gpu/<date>-<card>[-2].json
"""

import argparse
import itertools
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
_FP32, BF16 = 1e-4, 3e-2
MISSING = "-"


class Row(NamedTuple):
    """reached is None if a figure has no goal or was not found."""

    figure: str
    found: str
    goal: str = ""
    reached: bool | None = None


def rows(results: dict) -> list[Row]:
    """The table of a gpu.json: what was not run has a dash."""
    steps = {name: step.get("found", {}) for name, step in results["steps"].items()}

    def at(*path: str) -> object:
        value: object = steps
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    table = [
        Row("bf16 matrix product, TFLOP/s", _text(at("machine", "bf16", "tflops"))),
        Row("copy on the device, TB/s", _text(at("machine", "copy", "tb_s"))),
        *_parity(steps.get("parity", {})),
        *_training(steps.get("training", {})),
    ]
    for name, label in (("minilm", "MiniLM shape"), ("llama_7b", "LLaMA 7B shape")):
        table.append(Row(f"encode, {label}: items/s", _text(at("encoding", name, "items_per_second"))))
        table.append(Row(f"encode, {label}: tokens/s", _text(at("encoding", name, "tokens_per_second"))))
    share, measured = (at("encoding", "llama_7b", f"share_of_{peak}") for peak in ("data_sheet", "measured_peak"))
    table.append(_at_least("encode, LLaMA 7B: share of the data sheet's peak", share, 0.4))
    table.append(Row("encode, LLaMA 7B: share of the measured peak", _text(measured)))
    for key, label in (("tokens_per_second", "tokens/s"), ("peak_gb", "GB")):
        table.append(Row(f"LoRA step, LLaMA 7B: {label}", _text(at("encoding", "llama_7b lora", key))))
    for items, goal in ((100_000, None), (1_000_000, 3.0)):
        served = (f"{items} items", "exact")
        p50 = at("serving", *served, "p50_ms")
        label = f"serve {items:,} items"
        table.append(_at_most(f"{label}: p50, ms", p50, goal) if goal else Row(f"{label}: p50, ms", _text(p50)))
        table.append(Row(f"{label}: p99, ms", _text(at("serving", *served, "p99_ms"))))
        table.append(Row(f"{label}: users/s in batches of 64", _text(at("serving", *served, "users_per_second"))))
    total = at("cudf", "sum", "sum")
    table.append(Row("cudf with pruned libcudf: 1 + 2", _text(total), "3", None if total is None else total == 3))
    table += _prepare(steps.get("prepare", {}))
    return table


def _parity(found: dict) -> list[Row]:
    """The worst of every kind over all parts."""
    table = []
    for label, limit in (("fp32", _FP32), ("bf16", BF16)):
        errors = [
            value for part in found.values() for name, value in part.items()
            if label in name and isinstance(value, float)
        ]  # fmt: skip
        errors += [math.inf for part in found.values() if "error" in part]
        worst = max(errors, default=None)
        table.append(_at_most(f"device against CPU, {label}: largest relative error", worst, limit))
    same = found.get("ranking", {}).get("same_top10")
    table.append(_at_least("device against CPU: same top 10, share of users", same, 0.98))
    return table


def _training(found: dict) -> list[Row]:
    """One block for each model that was trained: the fastest procedure counts."""
    table = []
    for model in ("llm_cfsr", "sasrec"):
        speed = found.get(f"{model} speed", {})
        table.append(Row(f"train {model}: sequences/s", _text(speed.get("sequences_per_second"))))
        table.append(_at_least(f"train {model}: times 2 CPU cores", speed.get("times_two_cores"), 20))
        table.append(_at_least(f"train {model}: share of a plain torch loop", speed.get("share_of_plain_loop"), 0.9))
    for part, label in (("same as CPU", "validation NDCG@10 against CPU"), ("resume", "resumed against unbroken")):
        difference = found.get(part, {}).get("relative_difference")
        table.append(_at_most(f"train: {label}, relative difference", difference, 0.05))
    return table


def _prepare(found: dict) -> list[Row]:
    table = []
    for rows_in, goal in ((10_000_000, None), (100_000_000, 30)):
        part = found.get(f"{rows_in} rows", {})
        label = f"prepare {rows_in:,} rows"
        table.append(Row(f"{label}: rows/s on the device", _text(part.get("rows_per_second"))))
        ratio = part.get("times_two_cores")
        table.append(_at_least(f"{label}: times 2 CPU cores", ratio, goal) if goal
                     else Row(f"{label}: times 2 CPU cores", _text(ratio)))  # fmt: skip
        equal = part.get("equal")
        table.append(Row(f"{label}: same result as the CPU's", _text(equal), "yes", equal))
    return table


def _at_least(figure: str, value: float | None, goal: float) -> Row:
    return Row(figure, _text(value), f">= {goal:g}", None if value is None else value >= goal)


def _at_most(figure: str, value: float | None, goal: float) -> Row:
    return Row(figure, _text(value), f"<= {goal:g}", None if value is None else value <= goal)


def _text(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def report(results: dict) -> str:
    """The table, a line for each step that did not end well, and what machine it was."""
    dry = results.get("small", False)
    table = [("figure", "found", "goal", "reached"), *((*row[:3], _verdict(row, dry)) for row in rows(results))]
    widths = [max(len(line[place]) for line in table) for place in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
    for name, step in results["steps"].items():
        if step["status"] != "done":
            why = step.get("why") or step.get("error", "")
            lines.append(f"{name}: {step['status']} after {step['seconds']} s {why}".rstrip())
        for part, found in step.get("found", {}).items():
            if isinstance(found, dict) and (why := found.get("error") or found.get("skipped")):
                lines.append(f"{name}, {part}: {why}")
    machine = results.get("machine", {})
    seconds = sum(step["seconds"] for step in results["steps"].values())
    lines.append(f"{machine.get('device')}, driver {machine.get('driver')}, torch {machine.get('torch')}, "
                 f"{machine.get('cores')} cores, commit {results.get('commit')}, {seconds:.0f} s in all")  # fmt: skip
    if dry:
        lines.append("a dry run at small sizes: its figures mean nothing")
    return "\n".join(lines)


def _verdict(row: Row, dry: bool) -> str:
    if not row.goal or dry:
        return ""
    return {None: "not run", True: "yes", False: "NO"}[row.reached]


def kept_as(results: dict, folder: Path = RESULTS) -> Path:
    """<date>-<card>.json, the card in small letters: nvidia-h100; a number at the end if that is there already."""
    card = re.sub(r"[^a-z0-9]+", "-", str(results.get("machine", {}).get("device", "unknown")).lower())
    name = f"{results['date']}-{re.sub(r'-[0-9]+gb.*', '', card)}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/gpu")
    chosen = parser.parse_args()
    results = json.loads(chosen.results.read_text())
    print(report(results))
    if chosen.save:
        target = kept_as(results)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=1) + "\n")
        print(f"kept as {target}")


if __name__ == "__main__":
    main()
