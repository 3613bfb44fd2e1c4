"""Encoders known by name at work: items a second of encoding, LoRA or full tuning, and enrichment, on this machine.

python benchmarks/known_encoders.py RUN MODEL --template beauty     (RUN: a run directory whose stage ingest is done)
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers

from llmcfsr_merlin.config.embed_settings import EnrichConfig
from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.dataset.names import ITEMS
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.encoders.known import KNOWN
from llmcfsr_merlin.text.enrichment import Enricher
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.prompts import Prompter
from llmcfsr_merlin.text.tuning.tune import tune


def main() -> None:
    """Measure and print one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("model", choices=["minilm", *KNOWN])
    parser.add_argument("--template", default="generic")
    parser.add_argument("--encode", type=int, default=256, help="items to encode")
    parser.add_argument("--tune", type=int, default=80, help="items to tune on, one epoch in batches of 16; 0: none")
    parser.add_argument("--enrich", type=int, default=12, help="items to write for (gemma3-270m)")
    arguments = parser.parse_args()
    source = resolve(arguments.model)
    pooling = KNOWN[arguments.model].pooling if arguments.model in KNOWN else "mean"
    prompter = Prompter.of(arguments.template)
    count = max(arguments.encode, arguments.tune, arguments.enrich)
    rows = pq.read_table(arguments.run / "ingest" / ITEMS).slice(0, count).to_pylist()
    attributes = [prompter.attributes(row) for row in rows]
    start = time.perf_counter()
    encoder = TextEncoder.load(source, pooling=pooling, device="cpu")
    result: dict = {
        "model": source.record(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "load_seconds": round(time.perf_counter() - start, 1),
    }
    tokens = encoder.tokenise([prompter.render(row) for row in attributes[: arguments.encode]])
    encoder.encode_tokens(tokens[:8])
    start = time.perf_counter()
    encoder.encode_tokens(tokens)
    seconds = time.perf_counter() - start
    result["encode"] = {
        "items": len(tokens), "tokens": sum(map(len, tokens)), "seconds": round(seconds, 1),
        "items_per_second": round(len(tokens) / seconds, 2),
    }  # fmt: skip
    if arguments.tune:
        method = "lora" if pooling == "last" else "full"
        settings = TuneConfig(
            enabled=True, method=method, epochs=1, batch_size=16, micro_batch=32, evaluate_every=100, holdout=0.2,
            learning_rate=5e-4 if method == "lora" else 2e-5,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            done = tune(encoder, attributes[: arguments.tune], prompter, settings, Path(folder))
        kept = ("steps", "items", "holdout", "retrieval_before", "retrieval", "trained_parameters", "seconds")
        result["tune"] = {"method": method, **{name: done[name] for name in kept}}
        encoder = None
    if arguments.enrich and pooling == "last":
        settings = EnrichConfig(enabled=True, model=arguments.model, fewer_than=100)
        enricher = Enricher(settings, source, None, "cpu")
        sparse = [row[:2] for row in attributes[: arguments.enrich]]
        enricher(sparse[:1])  # loads
        start = time.perf_counter()
        made = enricher(sparse)
        result["enrich"] = {
            "items": len(sparse) - 1,
            "items_per_second": round((len(sparse) - 1) / (time.perf_counter() - start), 2),
            "written": [[row[0][1], row[-1][1]] for row in made],
        }
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
