"""Stage `export`: the trained model as a Triton model repository."""

from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import MODEL_REPOSITORY
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, sha256_file
from llmcfsr_merlin.serving.repository import export


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write `run_dir/export/model_repo` from the model in `run_dir/train`."""
    templates = sorted(path for path in resource("triton_repo").rglob("*") if path.suffix in (".pbtxt", ".py"))
    settings = config.serve.model_dump() | {"templates": [sha256_file(path) for path in templates]}
    manifest, _ = run_stage(
        run_dir,
        "export",
        settings,
        ["train"],
        lambda directory: export(Path(run_dir) / "train", directory / MODEL_REPOSITORY, config.serve),
        force=force,
    )
    return manifest
