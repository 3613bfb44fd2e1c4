"""Stage `export`: the trained model as a Triton model repository, with its model card."""

import logging
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import MODEL_REPOSITORY
from llmcfsr_merlin.evaluation.figures_of import measured
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.runtime.manifest import remake
from llmcfsr_merlin.runtime.progress import announced
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, sha256_file
from llmcfsr_merlin.serving.bundle import Bundle
from llmcfsr_merlin.serving.repository import export
from llmcfsr_merlin.training.model_card import write_card

_log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write `run_dir/export/model_repo` from the model in `run_dir/train`."""
    templates = sorted(path for path in resource("triton_repo").rglob("*") if path.suffix in (".pbtxt", ".py"))
    settings = config.serve.model_dump() | {"templates": [sha256_file(path) for path in templates]}
    trained = Path(run_dir) / "train"

    def work(directory: Path) -> dict:
        if config.evaluate.exclude_history and Bundle.open(trained).history_rule is None:
            _log.warning(
                "evaluate.exclude_history=true: the model is of an earlier version, which kept no record of it: "
                "requests without EXCLUDE_SEEN get items of their history: %s", remake(trained, "train", force=True),
            )  # fmt: skip
        with announced("export"):
            counts = export(trained, directory / MODEL_REPOSITORY, config.serve)
        model = Manifest.load(trained)
        write_card(directory, config, Path(run_dir), trained, model.counts, measured(config, Path(run_dir), model))
        return counts

    manifest, _ = run_stage(run_dir, "export", settings, ["train"], work, force=force)
    return manifest
