"""The tables that a served shortlist reads, written into a version's bundle; earlier ones are extended."""

import logging
import time
from pathlib import Path

from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.search.bound_tables import SEAL, extends, take_tables, write_tables
from llmcfsr_merlin.serving.bundle import FOLDER, Bundle

_log = logging.getLogger(__name__)
_EVERY = 10  # seconds between lines of progress


def write_search(bundle: Bundle, folder: Path, repository: Path, name: str) -> None:
    """Build the tables of a bundle's model into `folder`; the step `name` of the repository may have earlier ones.

    A build that was interrupted goes on: what is finished is kept beside the model.
    """
    model = load_model(bundle.directory)
    told = time.monotonic()

    def report(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > _EVERY:
            told = time.monotonic()
            _log.info("tables of the shortlist: %s of %s items", f"{done:,}", f"{of:,}")

    scratch = bundle.directory.parent / f".search-{bundle.hash[:12]}"
    write_tables(model, folder, scratch, _before(model, repository / name), report)


def _before(model: Ensemble, step: Path) -> Ensemble | None:
    """The newest served model whose items the new model extends, with its tables."""
    versions = sorted((path for path in step.iterdir() if path.name.isdecimal()), key=lambda path: -int(path.name))
    for version in versions:
        if (version / FOLDER / SEAL).is_file():
            known = load_model(version / FOLDER)
            if extends(model, known) and take_tables(known, version / FOLDER):
                return known
    return None
