"""The tables that a served shortlist reads, written into a version's bundle; earlier ones are extended."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.search.bound_tables import SEAL, extends, take_tables, write_tables
from llmcfsr_merlin.serving.bundle import FOLDER, Bundle

_log = logging.getLogger(__name__)
_EVERY = 10  # seconds between lines of progress


def write_search(bundle: Bundle, folder: Path, steps: Iterable[Path]) -> None:
    """Build the tables of a bundle's model into `folder`.

    steps: folders of models in repositories; versions of theirs may have tables that the new model's extend. A build
    that was interrupted goes on: what is finished is kept beside the model.
    """
    model = load_model(bundle.directory)
    told = time.monotonic()

    def report(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > _EVERY:
            told = time.monotonic()
            _log.info("tables of the shortlist: %s of %s items", f"{done:,}", f"{of:,}")

    scratch = bundle.directory.parent / f".search-{bundle.hash[:12]}"
    write_tables(model, folder, scratch, _before(model, steps), report)


def _before(model: Ensemble, steps: Iterable[Path]) -> Ensemble | None:
    """The model with tables whose items the new model extends; of several, one with the most items."""
    best = None
    for seal in (seal for step in steps for seal in step.glob(f"[0-9]*/{FOLDER}/{SEAL}")):
        known = load_model(seal.parent)
        if (best is None or known.shape.n_items > best.shape.n_items) and extends(model, known):
            best = known if take_tables(known, seal.parent) else best
    return best
