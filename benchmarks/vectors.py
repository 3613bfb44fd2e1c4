"""Item vectors side by side: base MiniLM, contrastively tuned MiniLM, TF-IDF + SVD, word vectors.

    python benchmarks/vectors.py runs/beauty --template beauty --tail 4 --only base tfidf words
    python benchmarks/vectors.py runs/yelp --template yelp --tail 13 --only tuned --set tune.drop=0.4

The run needs its stages ingest and prepare. Each variant's vectors are written to <run>/variants/<name>/vectors in the
format of the stage `embed` (so that the recommender can be trained on them), its figures are added to
benchmarks/results/vectors.json. Figures look at training and validation items only.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from llmcfsr_merlin.config.embed_settings import EmbedConfig
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.item_vectors import load_item_table, vectors_column
from llmcfsr_merlin.dataset.names import FIRST_ITEM, HAS_TEXT, ITEM, ITEMS, SEQUENCES, VECTOR, VECTORS
from llmcfsr_merlin.runtime.stage import write_json
from llmcfsr_merlin.text.diagnostics.reference_vectors import tfidf_svd, word_vectors
from llmcfsr_merlin.text.diagnostics.vector_report import Catalogue, draw_map, evaluate_vectors, show_neighbours
from llmcfsr_merlin.text.embed import embed_table
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.prompts import Prompter

RESULTS = Path(__file__).parent / "results" / "vectors.json"
BASELINES = {"tfidf": tfidf_svd, "words": word_vectors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--template", default="generic")
    parser.add_argument("--tail", type=int, default=4, help="an item with fewer training interactions is tail")
    parser.add_argument("--only", nargs="+", default=["base", "tuned", "tfidf", "words"])
    parser.add_argument("--set", nargs="*", default=[], help="settings of embed for the variants base and tuned")
    parser.add_argument("--name", help="name of the tuned variant (default: tuned)")
    arguments = parser.parse_args()
    dataset, items = Config.recorded(arguments.run).name, Catalogue.read(arguments.run)
    for variant in arguments.only:
        name = arguments.name if variant == "tuned" and arguments.name else variant
        out = arguments.run / "variants" / name
        out.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        record = _make(variant, arguments, items, out)
        seconds = time.perf_counter() - start
        table = load_item_table(items.ids, out / VECTORS)
        vectors, has_text = table.vectors[FIRST_ITEM:], table.has_text[FIRST_ITEM:]
        holdout = _holdout(arguments.run)
        figures = evaluate_vectors(vectors, has_text, items, arguments.tail, holdout)
        figures["queries_held_out_from_tuning"] = bool(holdout)
        (out / "neighbours.txt").write_text(show_neighbours(vectors, has_text, items) + "\n")
        draw_map(vectors, has_text, items, out / "map.png")
        entry = {"data": dataset, "variant": name, "seconds": round(seconds, 1), **record, **figures}
        known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        known = [old for old in known if (old["data"], old["variant"]) != (entry["data"], entry["variant"])]
        write_json(RESULTS, [*known, entry])
        print(json.dumps(entry))


def _make(variant: str, arguments, items: Catalogue, out: Path) -> dict:
    if variant in BASELINES:
        prompter = Prompter.of(arguments.template)
        parts = sorted((arguments.run / "ingest" / ITEMS).glob("part-*.parquet"))
        text = {str(row[ITEM]): prompter(row) for part in parts for row in pq.read_table(part).to_pylist()}
        prompts = [text.get(raw, "") for raw in items.ids]
        vectors = BASELINES[variant](prompts)
        has_text = np.array([bool(prompt) for prompt in prompts]) & vectors.any(1)
        vectors[~has_text] = vectors[has_text].mean(0)
        (out / VECTORS).mkdir(exist_ok=True)
        table = pa.table({ITEM: items.ids, VECTOR: vectors_column(vectors), HAS_TEXT: has_text})
        pq.write_table(table, out / VECTORS / "part-00000.parquet")
        return {"peer": BASELINES[variant].__doc__.split(":")[0].split(".")[0]}
    tree: dict = {"template": arguments.template, "tune": {"enabled": variant == "tuned"}}
    for setting in arguments.set:
        path, _, value = setting.partition("=")
        section, _, key = path.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = yaml.safe_load(value)
    tree["tune"]["enabled"] = variant == "tuned"
    config = EmbedConfig(**tree)
    counts = embed_table(
        config,
        resolve(config.model, config.revision),
        items_dir=arguments.run / "ingest" / ITEMS,
        vocabulary_ids=items.ids,
        out=out,
        sequences_dir=arguments.run / "prepare" / SEQUENCES,
    )
    tuned = counts["tuned"] and {key: value for key, value in counts["tuned"].items() if key not in ("key", "sha256")}
    return {"model": counts["model"]["name"], "tuned": tuned, "encode_seconds": counts["encode_seconds"]}


def _holdout(run: Path) -> list[str]:
    """The items that no variant was tuned on: the split is drawn from the seed and the items only."""
    found = sorted((run / "variants").glob("*/tuned/holdout.json"))
    return json.loads(found[0].read_text()) if found else []


if __name__ == "__main__":
    main()
