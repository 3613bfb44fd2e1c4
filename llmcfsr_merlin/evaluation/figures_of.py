"""The stored figures of a run's model, for its card."""

import json
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import METRICS
from llmcfsr_merlin.evaluation.groups import with_history
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.manifest import Manifest


def measured(config: Config, run_dir: Path, model: Manifest) -> list[dict]:
    """The metric rows of stage evaluate, if it ranked this very model."""
    try:
        evaluated = Manifest.load(run_dir / "evaluate")
        evaluated.verify(run_dir / "evaluate", [METRICS])
    except InputError:
        return []
    if evaluated.inputs.get("train") != model.identity:
        return []
    rows = json.loads((run_dir / "evaluate" / METRICS).read_text())
    return with_history(rows, config.evaluate.history)
