"""Stage prepare: interactions -> filtered, encoded, time-ordered sequences, splits, Merlin schema."""

from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import INTERACTIONS
from llmcfsr_merlin.runtime.engine import engine
from llmcfsr_merlin.runtime.stage import Manifest, run_stage

_TEMPORAL = {"split", "valid_from", "test_from", "valid_quantile", "test_quantile", "targets", "filter_by"}


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/prepare from run_dir/ingest/interactions; the engine (config.cluster) does not change it."""
    run_dir = Path(run_dir)

    def work(out: Path) -> dict:
        log = run_dir / "ingest" / INTERACTIONS
        if previous is not None:
            Manifest.load(previous).verify(previous, remembered=True)
        with engine(config.cluster) as chosen:
            # After the cluster has started: Merlin's imports touch the GPU, which the workers must do first.
            if previous is not None:
                from llmcfsr_merlin.dataset.prepare.extend import extend

                return extend(previous, log, out, config.prepare, chosen)
            from llmcfsr_merlin.dataset.prepare.prepare import prepare

            return prepare(log, out, config.prepare, chosen)

    previous = Path(config.prepare.extend) if config.prepare.extend else None
    # Settings of the other split have no effect, so they must not invalidate an earlier run.
    settings = config.prepare.model_dump(mode="json", exclude=None if config.prepare.split == "temporal" else _TEMPORAL)
    if config.prepare.ties == "source":  # the key from before this setting existed: earlier runs stay valid
        del settings["ties"], settings["seed"]
    if settings.get("filter_by") == "log":  # what was done before this setting existed
        del settings["filter_by"]
    if previous is not None:
        earlier = Manifest.load(previous)
        earlier.check_format(previous)
        settings["extend"] = earlier.key
    manifest, _ = run_stage(run_dir, "prepare", settings, {"ingest": [INTERACTIONS]}, work, force=force, resumable=True)
    return manifest
