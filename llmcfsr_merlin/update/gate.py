"""The gate of an update: a model goes out if it is served as the library has it, and is no worse than yesterday's."""

import logging
from pathlib import Path

import numpy as np

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import examples
from llmcfsr_merlin.dataset.names import MODEL_REPOSITORY, RANKS
from llmcfsr_merlin.evaluation.ranks import read_ranks
from llmcfsr_merlin.evaluation.significance import compare, distinct_cases
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, write_json
from llmcfsr_merlin.serving.parity import check_served
from llmcfsr_merlin.serving.server import Server
from llmcfsr_merlin.update.model_stages import GROWN

_log = logging.getLogger(__name__)
_HISTORIES = 200  # of the day's held-out users, compared on a server


def gate(config: Config, run: Path) -> Manifest:
    """Write run/gate if the model may go out; InputError that says why not."""

    def work(out: Path) -> dict:
        found = quality(config, run)
        _log.info("  %s", said(found))
        if found["base"] and found["high"] < -config.update.max_loss * found["base"]:
            raise InputError(
                f"the gate keeps the model back: {said(found)}, a loss beyond update.max_loss="
                f"{config.update.max_loss:g} that is no matter of chance. Yesterday's model stays: look at the day's "
                f"log, raise update.replay, or train anew (`llmcfsr run`)"
            )
        served = _served(config, run) if config.update.check_served else None
        write_json(out / "gate.json", {"quality": found, "served": served})
        return {"quality": found, "served": served}

    settings = {"max_loss": config.update.max_loss, "check_served": config.update.check_served}
    manifest, _ = run_stage(run, "gate", settings, {"train": [], "evaluate": [RANKS], "export": []}, work)
    return manifest


def quality(config: Config, run: Path) -> dict:
    """NDCG@10 of full ranking on the held-out interactions: value, that of yesterday's model (base), the interval of
    their difference (low, high) and count, by the deployment's history rule."""
    rule = config.evaluate.history
    ours, theirs = (read_ranks(run / "evaluate" / RANKS, name, rule) for name in (config.model.name, GROWN))
    everybody = {"overall": np.ones(len(distinct_cases(theirs)), bool)}
    rows = compare(ours, theirs, everybody, (10,), seed=config.evaluate.seed)
    row = next(
        row for row in rows if row["protocol"] == "full" and row["history"] == rule and row["metric"] == "ndcg@10"
    )
    return {name: row[name] for name in ("value", "base", "low", "high", "count")}


def said(found: dict) -> str:
    """The result of `quality` in a line."""
    return (
        f"NDCG@10 {found['value']:.4f}, yesterday's model {found['base']:.4f} on {found['count']:,} held-out users "
        f"(difference {found['low']:+.4f} to {found['high']:+.4f})"
    )


def _served(config: Config, run: Path) -> dict:
    """Serve the export on ports of its own and compare it with the library."""
    histories = [sequence[:-1] for sequence in examples.pick(run, _HISTORIES).values()]
    with Server(run / "export" / MODEL_REPOSITORY) as server:
        parity = check_served(
            run, server.grpc_url, histories, min(10, config.serve.max_top_k), shortlist=config.serve.shortlist
        )
    if not parity.passed:
        raise InputError(
            f"the gate keeps the model back: {parity.different} of {parity.histories} histories are answered "
            f"otherwise by a server than by the library: {parity.first_difference}"
        )
    return parity.as_dict()
