"""The vector report of a run, `llmcfsr vectors report`: intrinsic evaluation of its item vectors."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.item_vectors import load_item_table, match_ids
from llmcfsr_merlin.dataset.names import (
    CODE,
    FIRST_ITEM,
    ITEM,
    ITEMS,
    SEQUENCES,
    TITLE,
    TRAIN_COUNT,
    VECTORS,
    VOCABULARY,
)
from llmcfsr_merlin.dataset.raw.fields.clean_text import join_values
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.runtime.errors import MissingDependency
from llmcfsr_merlin.runtime.stage import write_json
from llmcfsr_merlin.text.diagnostics.intrinsic import (
    brand_retrieval,
    category_retrieval,
    isotropy,
    neighbours,
    next_item_retrieval,
)

MAX_QUERIES, MAX_PAIRS, MAP_ITEMS, SHOWN = 1000, 5000, 2000, 6


@dataclass(frozen=True)
class Catalogue:
    """Data of n items in id order, and the validation pairs (positions of last and next item)."""

    ids: list[str]
    titles: list[str]
    brands: list[str]
    categories: list[frozenset]
    counts: np.ndarray
    sources: np.ndarray
    targets: np.ndarray

    @classmethod
    def read(cls, run_dir: Path) -> "Catalogue":
        """Load it from the stages ingest and prepare of a run."""
        vocabulary = pq.read_table(Path(run_dir) / "prepare" / VOCABULARY).sort_by(CODE)
        ids = vocabulary[ITEM].to_pylist()
        titles, brands = [""] * len(ids), [""] * len(ids)
        categories: list[frozenset[str]] = [frozenset()] * len(ids)
        for path in sorted((Path(run_dir) / "ingest" / ITEMS).glob("part-*.parquet")):
            names = pq.read_schema(path).names
            table = pq.read_table(
                path, columns=[name for name in (ITEM, TITLE, "brand", "categories") if name in names]
            )
            places = match_ids(table[ITEM].cast(pa.string()), vocabulary[ITEM].combine_chunks().cast(pa.string()))
            for place, row in zip(places, table.to_pylist()):
                if place >= 0:
                    titles[place] = join_values(row.get(TITLE), 100)
                    brands[place] = join_values(row.get("brand"), 100).lower()
                    listed = row.get("categories") or []
                    listed = listed.split(",") if isinstance(listed, str) else listed
                    categories[place] = frozenset(filter(None, (join_values(entry, 100).lower() for entry in listed)))
        sources, targets = validation_pairs(Path(run_dir) / "prepare" / SEQUENCES)
        counts = vocabulary[TRAIN_COUNT].to_numpy() if TRAIN_COUNT in vocabulary.column_names else np.zeros(len(ids))
        return cls(ids, titles, brands, categories, counts, sources, targets)


def validation_pairs(sequences_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions (encoded id - 3) of each user's last training and first validation item; test items are not used."""
    pairs = [
        (row[end - 1], row[end])
        for block in read_histories(sequences_dir)
        for row, end, stop in zip(block.sequences, block.train, block.valid)
        if 0 < end < stop
    ]
    chosen = np.random.default_rng(0).permutation(len(pairs))[:MAX_PAIRS]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)[np.sort(chosen)] - FIRST_ITEM
    return array[:, 0], array[:, 1]


def evaluate_vectors(
    vectors: np.ndarray, has_text: np.ndarray, items: Catalogue, tail_below: int, held_out: Sequence[str] = ()
) -> dict:
    """All figures for the vectors (n, D) of the catalogue's items. held_out: query ids; empty: a random sample."""
    place = {raw: row for row, raw in enumerate(items.ids)}
    queries = np.array([place[raw] for raw in held_out if raw in place], dtype=np.int64)
    if not len(queries):
        queries = np.random.default_rng(0).permutation(np.flatnonzero(has_text))
    queries = queries[:MAX_QUERIES]
    return {
        "items": len(vectors),
        "dimension": int(vectors.shape[1]),
        "without_text": int((~has_text).sum()),
        "queries_held_out_from_tuning": bool(len(held_out)),
        "same_brand@10": brand_retrieval(vectors, queries, items.brands),
        "category_overlap@10": category_retrieval(vectors, queries, items.categories),
        "next_item": next_item_retrieval(vectors, items.sources, items.targets, items.counts, tail_below),
        "isotropy": isotropy(vectors[has_text]),
    }


def vectors_report(run_dir: Path, out: Path, tail_below: int, vectors_dir: Path | None = None) -> dict:
    """Evaluate the vectors of a run and write report.json, neighbours.txt and map.png into `out`; returns the figures.

    tail_below: evaluate.tail_item. vectors_dir: other vectors of the same items (default: run_dir/embed/vectors).
    Needs matplotlib and scikit-learn for the map.
    """
    run_dir, out = Path(run_dir), Path(out)
    items = Catalogue.read(run_dir)
    table = load_item_table(items.ids, vectors_dir or run_dir / "embed" / VECTORS)
    vectors, has_text = table.vectors[FIRST_ITEM:], table.has_text[FIRST_ITEM:]
    held = run_dir / "embed" / "tuned" / "holdout.json"
    held_out = json.loads(held.read_text()) if held.is_file() else []
    figures = evaluate_vectors(vectors, has_text, items, tail_below, held_out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", figures)
    (out / "neighbours.txt").write_text(show_neighbours(vectors, has_text, items) + "\n")
    draw_map(vectors, has_text, items, out / "map.png")
    return figures


def summary(figures: dict) -> str:
    """The figures as lines of text."""
    brand, category = figures["same_brand@10"], figures["category_overlap@10"]
    spread = figures["isotropy"]
    asked = "held out from tuning" if figures["queries_held_out_from_tuning"] else "drawn at random"
    lines = [
        f"{figures['items']} items, {figures['dimension']} dimensions, {figures['without_text']} without text",
        f"same brand among the 10 nearest      {_value(brand['precision'])} (chance {_value(brand['chance'])}, "
        f"{brand['queries']} items {asked})",
        f"category overlap of the 10 nearest   {_value(category['overlap'])} (chance {_value(category['chance'])}, "
        f"{category['queries']} items)",
    ]
    for group in ("all", "head", "tail"):
        found = figures["next_item"][group]
        lines.append(
            f"next item from the last one, {group:<4}    HR@10 {_value(found['hr@10'])}  MRR {_value(found['mrr'])} "
            f"({found['pairs']} validation pairs)"
        )
    lines.append(
        f"isotropy                             mean cosine {spread['mean_cosine']}, "
        f"effective dimension {spread['effective_dimension']}, largest direction {spread['first_direction']:.0%}"
    )
    return "\n".join(lines)


def _value(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"


def show_neighbours(vectors: np.ndarray, has_text: np.ndarray, items: Catalogue, k: int = 5) -> str:
    """The nearest items, by title, of items from the most to the least popular."""
    order = np.flatnonzero(has_text)[np.argsort(-items.counts[has_text], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)]
    lines = []
    for query, row in zip(chosen, neighbours(vectors, chosen, k)):
        lines.append(f"{items.titles[query] or items.ids[query]} (in training {int(items.counts[query])} times)")
        cosine = (
            vectors[row]
            @ vectors[query]
            / np.maximum(np.linalg.norm(vectors[row], axis=1) * np.linalg.norm(vectors[query]), 1e-12)
        )
        lines += [f"  {c:.2f}  {items.titles[n] or items.ids[n]}" for c, n in zip(cosine, row)]
    return "\n".join(lines)


def draw_map(vectors: np.ndarray, has_text: np.ndarray, items: Catalogue, path: Path) -> None:
    """A t-SNE map of at most 2000 items as PNG, coloured by the nine categories that divide them best."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingDependency(f"the map needs matplotlib and scikit-learn ({error}): pip install them") from error
    rows = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(has_text))[:MAP_ITEMS])
    if len(rows) < 5:
        return
    flat = TSNE(metric="cosine", init="random", perplexity=min(30, (len(rows) - 1) // 3), random_state=0).fit_transform(
        vectors[rows]
    )
    names, label = _colours([items.categories[row] for row in rows], 9)
    figure, axes = pyplot.subplots(figsize=(10, 7), dpi=110)
    x, y = flat[label == len(names)].T
    axes.scatter(x, y, s=6, c="#cccccc", label="other", linewidths=0)
    for number, name in enumerate(names):
        x, y = flat[label == number].T
        axes.scatter(
            x,
            y,
            s=9,
            color=pyplot.cm.tab10(number),
            label="{} ({})".format(name.replace("$", r"\$"), (label == number).sum()),  # matplotlib parses "$" as math
            linewidths=0,
        )
    axes.set(xticks=[], yticks=[], title=f"{len(rows)} of {len(items.ids)} items, {vectors.shape[1]} dimensions, t-SNE")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2.5)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _colours(categories: list[frozenset], colours: int) -> tuple[list[str], np.ndarray]:
    """Names of at most `colours` categories and each item's place among them (len(names): none of them).

    Chosen greedily, each time the category with most uncoloured items; categories of more than half of
    all items do not discriminate and are skipped.
    """
    label = np.full(len(categories), -1)
    names: list[str] = []
    total = Counter(name for row in categories for name in row)
    everywhere = {name for name, count in total.items() if count > len(categories) / 2}
    while len(names) < colours:
        free = [row for row in np.flatnonzero(label < 0) if categories[row] - everywhere]
        if not free:
            break
        counts = Counter(name for row in free for name in categories[row] - everywhere)
        names.append(min(counts, key=lambda name: (-counts[name], name)))
        label[[row for row in free if names[-1] in categories[row]]] = len(names) - 1
    label[label < 0] = len(names)
    return names, label
