"""Encoding speed beside sentence-transformers, and memory from 10 thousand to 1 million items.

    python benchmarks/encode.py speed runs/beauty --items 2000     # needs sentence-transformers (current transformers)
    python benchmarks/encode.py memory --items 10000 100000 1000000

`speed`: the same MiniLM, prompts, threads and batch size in one process, peers in turn, median of the repeats.
`memory`: the whole stage (Parquet to Parquet, 384 dimensions, PCA) with a one-layer model, so that a million
items take minutes; peak resident memory of a fresh process each. Results are added to benchmarks/results/encode.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, ITEMS
from llmcfsr_merlin.runtime.stage import write_json

RESULTS = Path(__file__).parent / "results" / "encode.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    speed_arguments = verbs.add_parser("speed")
    speed_arguments.add_argument("run", type=Path)
    speed_arguments.add_argument("--items", type=int, default=2000)
    speed_arguments.add_argument("--repeats", type=int, default=3)
    speed_arguments.add_argument("--batch", type=int, nargs="+", default=[32, 64])
    speed_arguments.add_argument("--template", default="beauty")
    memory_arguments = verbs.add_parser("memory")
    memory_arguments.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    one = verbs.add_parser("one")
    one.add_argument("folder", type=Path)
    one.add_argument("count", type=int)
    arguments = parser.parse_args()
    if arguments.verb == "one":
        _one(arguments.folder, arguments.count)
    elif arguments.verb == "speed":
        _add("speed", speed(arguments))
    else:
        for count in arguments.items:
            _add(f"memory {count}", memory(count))


def speed(arguments) -> dict:
    """Items a second of both, on the same prompts."""
    import sentence_transformers
    import torch
    import transformers

    from llmcfsr_merlin.text.encoder import TextEncoder
    from llmcfsr_merlin.text.language_models import embedded_folder, resolve
    from llmcfsr_merlin.text.prompts import Prompter

    prompter = Prompter.of(arguments.template)
    rows = pq.read_table(arguments.run / "ingest" / ITEMS).slice(0, arguments.items).to_pylist()
    prompts = [prompter(row) for row in rows]
    ours = TextEncoder.load(resolve("minilm"), device="cpu", max_tokens=128)
    theirs = sentence_transformers.SentenceTransformer(str(embedded_folder()), device="cpu", local_files_only=True)
    theirs.max_seq_length = 128
    result: dict = {
        "command": "python benchmarks/encode.py " + " ".join(sys.argv[1:]),
        "items": len(prompts),
        "tokens": sum(map(len, ours.tokenise(prompts))),
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentence-transformers": sentence_transformers.__version__,
        },
        "runs": [],
    }
    largest = 0.0
    for size in arguments.batch:
        ours.batch_size = size
        seconds: dict[str, list[float]] = {"ours": [], "sentence-transformers": []}
        ours.encode(prompts[:64]), theirs.encode(prompts[:64])
        for repeat in range(arguments.repeats):
            for name in sorted(seconds, reverse=bool(repeat % 2)):  # in turn: a busy machine slows both alike
                start = time.perf_counter()
                if name == "ours":
                    mine = ours.encode(prompts)
                else:
                    other = theirs.encode(prompts, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
                seconds[name].append(time.perf_counter() - start)
        largest = max(largest, float(np.abs(mine - other).max()))
        rates = {name: round(len(prompts) / statistics.median(times), 1) for name, times in seconds.items()}
        result["runs"].append({"batch": size, "items_per_second": rates, "seconds": seconds})
        print(size, rates)
    result["largest_difference"] = largest
    return result


def memory(count: int) -> dict:
    """Peak memory and seconds of the stage in a fresh process, on generated items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model")
        _write_items(folder / "items", count)
        command = [sys.executable, __file__, "one", str(folder), str(count)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = {"items": count, **json.loads(output.splitlines()[-1])}
    print(result)
    return result


def _one(folder: Path, count: int) -> None:
    import resource

    from llmcfsr_merlin.config.embed_settings import EmbedConfig
    from llmcfsr_merlin.text.embed import embed_table
    from llmcfsr_merlin.text.language_models import resolve

    config = EmbedConfig(
        model=str(folder / "model"), template="beauty", max_tokens=16, batch_size=256, device="cpu", reduction="pca"
    )
    ids = pq.read_table(folder / "items", columns=[ITEM])[ITEM].to_pylist()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    counts = embed_table(config, resolve(config.model), folder / "items", ids, folder / "out")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        "dimension": counts["dimension"],
        "seconds": round(seconds, 1),
        "items_per_second": round(count / seconds),
        "peak_mb": peak >> 10,
        "before_stage_mb": before >> 10,
        "vectors_mb": sum(path.stat().st_size for path in (folder / "out" / "vectors").iterdir()) >> 20,
    }
    print(json.dumps(record))


def _write_model(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from llmcfsr_merlin.text.language_models import embedded_folder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder(), local_files_only=True)
    sizes = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _write_items(folder: Path, count: int, size: int = 100_000) -> None:
    words = ("red", "blue", "green", "gold", "soap", "cream", "polish", "brush", "oil", "mask")
    folder.mkdir()
    for part, start in enumerate(range(0, count, size)):
        numbers = range(start, min(start + size, count))
        titles = [f"{words[n % 10]} {words[n // 10 % 10]} {n}" for n in numbers]
        brands = [words[n % 7] for n in numbers]
        table = pa.table({ITEM: [f"item-{n}" for n in numbers], "title": titles, "brand": brands})
        pq.write_table(table, folder / f"part-{part:05d}.parquet", row_group_size=8192)


def _add(name: str, entry: dict) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    known[name] = {**entry, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, known)


if __name__ == "__main__":
    main()
