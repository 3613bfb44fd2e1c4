"""Stage ingest: raw logs and item metadata -> Parquet of interactions and items."""

import os
from pathlib import Path

from llmcfsr_merlin.cluster import print_counts
from llmcfsr_merlin.config import Config
from llmcfsr_merlin.data.ingest import ingest
from llmcfsr_merlin.data.lines import find_files
from llmcfsr_merlin.data.synthetic import write_amazon
from llmcfsr_merlin.failures import clear_failures
from llmcfsr_merlin.stage import Manifest, run_stage, sha256_file

_SMALL = 1 << 20  # bytes; a smaller input is parsed sooner than a second process starts


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/ingest from the files that config.data names, or from generated ones (format `synthetic`).

    The stage runs again when the content of a file changes, not when the file is moved.
    """
    data = config.data
    generated = data.format == "synthetic"
    files = [] if generated else find_files((*data.interactions, *data.items), "data")

    def work(out: Path) -> dict:
        source = data
        if generated:
            reviews, metadata = write_amazon(
                out / "raw", data.synthetic_users, data.synthetic_items, data.synthetic_seed
            )
            source = data.model_copy(
                update={"format": "amazon", "interactions": (str(reviews),), "items": (str(metadata),)}
            )
        size = sum(path.stat().st_size for path in files)
        workers = 1 if size < _SMALL else config.cluster.workers or len(os.sched_getaffinity(0))
        counts = ingest(source, out, workers=workers)
        print_counts("ingest", [(name, count) for name, count in counts.items() if count])
        return counts

    settings = data.model_dump(exclude={"interactions", "items"}) | {"files": [sha256_file(path) for path in files]}
    with clear_failures("ingest"):
        manifest, _ = run_stage(run_dir, "ingest", settings, [], work, force=force)
    return manifest
