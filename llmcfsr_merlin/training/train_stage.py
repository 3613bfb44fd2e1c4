"""Stage train: sequences and item vectors -> the fitted model, and the trained baselines."""

import logging
import shutil
from pathlib import Path

import numpy as np

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import (
    ITEMS,
    LEXICAL,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    SCHEMA,
    TRAIN_HISTORY,
    VECTORS,
    VOCABULARY,
)
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import BASELINES
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, write_json
from llmcfsr_merlin.runtime.watch import LOGS, Watch
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.scorers.network import NetworkScorer
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.training.fit import counts_of, fit_model
from llmcfsr_merlin.training.model_card import write_card
from llmcfsr_merlin.training.procedures import resolved
from llmcfsr_merlin.training.validation_ranks import repeated_targets

_log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/train from run_dir/prepare and embed, and run_dir/baselines/<name> for each trained baseline.

    A model without item vectors does not read run_dir/embed. A killed training resumes from its last epoch. Baselines
    without a network are fitted by stage evaluate, which is as fast as loading them.
    """
    run_dir = Path(run_dir)
    manifest = _train(config, run_dir, run_dir, "train", "", force)
    for name in config.baselines:
        other = config.with_model(name)
        if other.model.network:
            _train(other, run_dir, run_dir / BASELINES, name, "../", force)
    return manifest


def _train(config: Config, run_dir: Path, parent: Path, stage: str, up: str, force: bool) -> Manifest:
    teacher = None
    if config.train.align_to:
        teacher = run_dir / BASELINES / config.train.align_to
        _train(config.with_model(config.train.align_to), run_dir, run_dir / BASELINES, teacher.name, "../", force)

    def work(out: Path) -> dict:
        embedded = run_dir / "embed" if config.model.reads else None
        dataset = Dataset(run_dir / "prepare", embedded, config.prepare.max_length)
        checkpoints = out / ".checkpoints"
        _log.info("training %s", config.model.name)
        model, history = fit_model(
            config.model,
            config.train,
            dataset,
            checkpoints,
            item_table=None if teacher is None else _item_table(teacher, dataset, config),
            exclude_history=config.evaluate.exclude_history,
            tail_item=config.evaluate.tail_item,
            report=lambda line: _log.info("  %s", line),
            watch=Watch(config.train.report_to, run_dir / LOGS, f"{config.name}/{stage}"),
        )
        shutil.rmtree(checkpoints)
        shutil.copy2(dataset.prepared / VOCABULARY, out / VOCABULARY)
        save_model(model, out, dataset.vocabulary.hash)
        write_json(out / TRAIN_HISTORY, history)
        repeated, targets = repeated_targets(dataset.files("valid"))
        counts = counts_of(model, history) | {"repeated targets": repeated, "validation targets": targets}
        if stage == "train":
            _log.info(
                "  %.1f%% of %s validation targets repeat an item of the history, which is %s",
                100 * repeated / max(targets, 1), f"{targets:,}", config.evaluate.history,
            )  # fmt: skip
        write_card(out, config, run_dir, out, counts)
        return counts

    settings = {
        "model": config.model.trained_by(),
        "train": config.train.identity() | {"procedure": resolved(config.train.procedure)},
        "max_length": config.prepare.max_length,
        "exclude_history": config.evaluate.exclude_history,
    }
    if len(config.model.scorers) > 1:
        settings["tail_item"] = config.evaluate.tail_item
    inputs = {f"{up}prepare": [VOCABULARY, SCHEMA, "train/", "valid/"]}
    if config.model.reads:
        inputs[f"{up}embed"] = [VECTORS, LEXICAL]
    reads_language = config.train.pretrain in ("texts", "interests")
    if reads_language:
        settings["language_model"] = resolve(config.train.language_model).sha256
    if config.train.pretrain == "attributes" or config.train.copies or reads_language:
        inputs[f"{up}ingest"] = [f"{ITEMS}/"]
    if teacher:
        inputs[f"{up}{BASELINES}/{teacher.name}"] = [MODEL_CONFIG, MODEL_WEIGHTS]
    manifest, _ = run_stage(parent, stage, settings, inputs, work, force=force, resumable=True)
    return manifest


def _item_table(teacher: Path, dataset: Dataset, config: Config) -> np.ndarray:
    """The trained item table [V, d] of a baseline."""
    scorer = load_model(teacher, dataset.vocabulary.hash).scorers.get("network")
    table = scorer.network.items.collaborative if isinstance(scorer, NetworkScorer) else None
    hidden = config.model.network.hidden if config.model.network else None
    if table is None or table.embedding_dim != hidden:
        raise InputError(f"train.align_to: expected a model with an item table of width {hidden}, found {teacher.name}")
    return table.weight.detach().numpy()
