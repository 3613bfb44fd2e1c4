"""Stage ingest: raw reviews and metadata of any size -> part files of interactions and of items."""

from pathlib import Path

from llmcfsr_merlin.config import Config
from llmcfsr_merlin.data.ingest import ingest
from llmcfsr_merlin.data.source import find_files, fingerprint
from llmcfsr_merlin.data.synthetic import write_synthetic
from llmcfsr_merlin.stage import Manifest, run_stage

RAW = "raw"  # the synthetic files, as if they had been downloaded


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/ingest from the files named in config.data, or from the shop made by data/synthetic.py."""
    data = config.data
    made = data.format == "synthetic"
    settings = data.model_dump(exclude={"interactions", "items"})
    for name in () if made else ("interactions", "items"):
        settings[name] = [fingerprint(path) for path in find_files(getattr(data, name), f"data.{name}")]

    def work(out: Path) -> dict:
        read = data
        if made:
            (out / RAW).mkdir()
            reviews, metadata = write_synthetic(
                out / RAW, users=data.synthetic_users, items=data.synthetic_items, seed=data.synthetic_seed
            )
            read = data.model_copy(
                update={"format": "amazon", "interactions": (str(reviews),), "items": (str(metadata),)}
            )
        return ingest(read, out, workers=config.cluster.workers)

    manifest, _ = run_stage(Path(run_dir), "ingest", settings, (), work, force=force)
    return manifest
