"""Stage embed: item attributes -> prompts -> language model -> semantic vectors."""

from pathlib import Path

import pyarrow.parquet as pq

from llmcfsr_merlin.config import Config
from llmcfsr_merlin.contract import ITEM, ITEMS, SEQUENCES, VOCABULARY
from llmcfsr_merlin.semantics.embedding import embed_table
from llmcfsr_merlin.semantics.models import resolve
from llmcfsr_merlin.stage import Manifest, run_stage


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/embed from run_dir/ingest/items and run_dir/prepare/vocabulary.parquet."""
    run_dir = Path(run_dir)
    source = resolve(config.embed.model, config.embed.revision)
    settings = config.embed.model_dump(exclude={"batch_size", "device", "workers"}) | {"weights": source.sha256}

    def work(out: Path) -> dict:
        ids = pq.read_table(run_dir / "prepare" / VOCABULARY, columns=[ITEM])[ITEM].to_pylist()
        previous = run_dir / "embed"
        return embed_table(
            config.embed,
            source,
            items_dir=run_dir / "ingest" / ITEMS,
            vocabulary_ids=ids,
            out=out,
            previous=previous if previous.is_dir() and not force else None,
            sequences_dir=run_dir / "prepare" / SEQUENCES,
        )

    manifest, _ = run_stage(run_dir, "embed", settings, ("ingest", "prepare"), work, force=force, resumable=True)
    return manifest
