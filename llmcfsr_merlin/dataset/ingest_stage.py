"""Stage ingest: raw logs and item metadata -> Parquet of interactions and items."""

from pathlib import Path

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.raw.files.source import find_files, fingerprint
from llmcfsr_merlin.dataset.raw.ingest import ingest
from llmcfsr_merlin.dataset.raw.synthetic import write_amazon
from llmcfsr_merlin.runtime.stage import Manifest, run_stage


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/ingest from the files named in config.data, or from generated ones (format `synthetic`).

    The stage runs again when the content of a file changes, not when the file is moved.
    """
    data = config.data
    generated = data.format == "synthetic"
    settings = data.model_dump(exclude={"interactions", "items"})
    for name in () if generated else ("interactions", "items"):
        settings[name] = [fingerprint(path) for path in find_files(getattr(data, name), f"data.{name}")]

    def work(out: Path) -> dict:
        return ingest(generated_in(out / "raw", data), out, workers=config.cluster.workers)

    manifest, _ = run_stage(run_dir, "ingest", settings, [], work, force=force)
    return manifest


def generated_in(folder: Path, data: DataConfig) -> DataConfig:
    """The settings to read by: of the files that format `synthetic` writes into `folder`, else as they are."""
    if data.format != "synthetic":
        return data
    reviews, metadata = write_amazon(folder, data.synthetic_users, data.synthetic_items, data.synthetic_seed)
    files = {"format": "amazon", "interactions": (str(reviews),), "items": (str(metadata),)}
    return data.model_copy(update=files)
