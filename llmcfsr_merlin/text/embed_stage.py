"""Stage embed: item attributes -> prompts -> language model -> semantic vectors."""

from pathlib import Path

import pyarrow.parquet as pq

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import ITEM, ITEMS, SEQUENCES, VOCABULARY
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import MANIFEST, Manifest, run_stage
from llmcfsr_merlin.runtime.watch import LOGS, Watch
from llmcfsr_merlin.text.embed import ENRICHED, embed_table
from llmcfsr_merlin.text.item_encoder import TUNED
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.shards import ENCODED


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/embed from run_dir/ingest/items and run_dir/prepare/vocabulary.parquet."""
    run_dir = Path(run_dir)
    source = resolve(config.embed.model, config.embed.revision)
    ways = {"batch_size", "batch_tokens", "device", "workers"}  # of computing the same
    settings = config.embed.model_dump(exclude=ways) | {"weights": source.sha256}

    def work(out: Path) -> dict:
        ids = pq.read_table(run_dir / "prepare" / VOCABULARY, columns=[ITEM])[ITEM].to_pylist()
        return embed_table(
            config.embed,
            source,
            items_dir=run_dir / "ingest" / ITEMS,
            vocabulary_ids=ids,
            out=out,
            previous=None if force else _whole(run_dir / "embed"),
            sequences_dir=run_dir / "prepare" / SEQUENCES,
            watch=Watch(config.train.report_to, run_dir / LOGS, f"{config.name}/embed.tune"),
        )

    inputs = {"ingest": [ITEMS], "prepare": [VOCABULARY, SEQUENCES]}
    manifest, _ = run_stage(run_dir, "embed", settings, inputs, work, force=force, resumable=True)
    return manifest


def _whole(embedded: Path) -> Path | None:
    """An earlier result, if the files reused from it (vectors, tuned weights, texts) are unchanged."""
    if not (embedded / MANIFEST).is_file():
        return None
    try:
        manifest = Manifest.load(embedded)
        manifest.verify(embedded, manifest.below(ENCODED, TUNED, ENRICHED), remembered=True)
    except InputError:
        return None
    return embedded
