"""The augmentation's share r and the temperature of contrastive tuning, chosen on validation.

    python benchmarks/tune_grid.py runs/beauty --template beauty --drop 0.2 0.4 0.6 --temperature 0.05 0.1

Each setting tunes MiniLM for as many steps on the same items; judged by attribute retrieval on held-out items
and by next-item retrieval on validation pairs, ranked among the items of those pairs (so that one setting takes minutes
on a CPU). Added to benchmarks/results/tune_grid.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.dataset.names import ITEM, ITEMS
from llmcfsr_merlin.runtime.stage import write_json
from llmcfsr_merlin.text.diagnostics.intrinsic import next_item_retrieval
from llmcfsr_merlin.text.diagnostics.vector_report import Catalogue
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.prompts import Prompter
from llmcfsr_merlin.text.tuning.tune import tune

RESULTS = Path(__file__).parent / "results" / "tune_grid.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--template", default="generic")
    parser.add_argument("--tail", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--drop", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.05])
    arguments = parser.parse_args()
    items = Catalogue.read(arguments.run)
    prompter = Prompter.of(arguments.template)
    parts = sorted((arguments.run / "ingest" / ITEMS).glob("part-*.parquet"))
    known = {str(row[ITEM]): prompter.attributes(row) for part in parts for row in pq.read_table(part).to_pylist()}
    attributes = [known.get(raw, []) for raw in items.ids]
    sources, targets = items.sources[: arguments.pairs], items.targets[: arguments.pairs]
    used, places = np.unique(np.concatenate([sources, targets]), return_inverse=True)
    prompts = [prompter.render(attributes[place]) for place in used]
    size = 64
    count = round(arguments.steps * size / 0.95) + size
    chosen = np.sort(np.random.default_rng(0).permutation(len(attributes))[:count])
    for drop in arguments.drop:
        for temperature in arguments.temperature:
            settings = TuneConfig(
                enabled=True, drop=drop, temperature=temperature, epochs=1, batch_size=size, micro_batch=2 * size,
                precision="bfloat16", evaluate_every=arguments.steps,
            )  # fmt: skip
            encoder = TextEncoder.load(resolve("minilm"), device="cpu")
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                record = tune(encoder, [attributes[place] for place in chosen], prompter, settings, Path(folder))
            vectors = encoder.encode(prompts)
            half = len(sources)
            judged = next_item_retrieval(vectors, places[:half], places[half:], items.counts[used], arguments.tail)
            entry = {
                "data": arguments.run.name, "drop": drop, "temperature": temperature, "steps": record["steps"],
                "retrieval_before": record["retrieval_before"], "retrieval": record["retrieval"],
                "candidates": len(used), **judged, "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
            same = ("data", "drop", "temperature", "steps")
            write_json(RESULTS, [*(o for o in old if any(o[key] != entry[key] for key in same)), entry])
            print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
