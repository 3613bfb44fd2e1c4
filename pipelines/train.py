"""Stage train: sequences and semantic vectors -> the trained network, and beside it the neural baselines."""

import shutil
from pathlib import Path

import numpy as np

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import (
    LEXICAL,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    SCHEMA,
    TRAIN_HISTORY,
    VECTORS,
    VOCABULARY,
)
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import BASELINES
from llmcfsr_merlin.runtime.stage import Manifest, run_stage, write_json
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.text.vectors import load_vectors
from llmcfsr_merlin.training.train import train_network


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/train from run_dir/prepare and embed, and run_dir/baselines/<name> for each neural baseline.

    An id-only model does not read run_dir/embed. A killed training goes on from its last epoch.
    """
    run_dir = Path(run_dir)
    manifest = _train(config, run_dir, run_dir, "train", "", force)
    for name in config.neural_baselines:
        _train(config.with_model(name), run_dir, run_dir / BASELINES, name, "../", force)
    return manifest


def _train(config: Config, run_dir: Path, parent: Path, stage: str, up: str, force: bool) -> Manifest:
    prepared, embedded = run_dir / "prepare", run_dir / "embed"
    teacher = None
    if config.train.align_to:
        teacher = run_dir / BASELINES / config.train.align_to
        _train(config.with_model(config.train.align_to), run_dir, run_dir / BASELINES, teacher.name, "../", force)

    def work(out: Path) -> dict:
        vocabulary = Vocabulary.load(prepared / VOCABULARY)
        vectors, lexical = load_vectors(config.model, vocabulary.ids.tolist(), embedded)
        checkpoints = out / ".checkpoints"
        print(f"training {config.model.name}", flush=True)
        network, history = train_network(
            config.model,
            config.train,
            prepared,
            checkpoints,
            rows=len(vocabulary),
            max_length=config.prepare.max_length,
            train_counts=vocabulary.train_counts,
            vectors=vectors,
            lexical=lexical,
            item_table=None if teacher is None else _item_table(teacher, vocabulary, config),
            exclude_history=config.evaluate.exclude_history,
            tail_item=config.evaluate.tail_item,
            report=lambda line: print(f"  {line}", flush=True),
        )
        shutil.rmtree(checkpoints)
        shutil.copy2(prepared / VOCABULARY, out / VOCABULARY)
        save_model(network, out, vocabulary.hash)
        write_json(out / TRAIN_HISTORY, history)
        best = max(history, key=lambda epoch: epoch["ndcg@10"])
        return {
            "model": config.model.name,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "epochs": len(history),
            "best_epoch": best["epoch"],
            "validation ndcg@10": round(best["ndcg@10"], 5),
            "gamma": float(network.gamma),
            "cold_gamma": float(network.cold_gamma),
            "transition_gamma": float(network.transition_gamma),
        }

    settings = {
        "model": config.model.model_dump(),
        "train": config.train.model_dump(exclude={"device"}),
        "max_length": config.prepare.max_length,
        "exclude_history": config.evaluate.exclude_history,
    }
    if config.model.content_match or config.model.transition_neighbours:
        settings["tail_item"] = config.evaluate.tail_item
    inputs = {f"{up}prepare": [VOCABULARY, SCHEMA, "train/", "valid/"]}
    if config.model.needs_vectors:
        inputs[f"{up}embed"] = [VECTORS, LEXICAL]
    if teacher:
        inputs[f"{up}{BASELINES}/{teacher.name}"] = [MODEL_CONFIG, MODEL_WEIGHTS]
    manifest, _ = run_stage(parent, stage, settings, inputs, work, force=force, resumable=True)
    return manifest


def _item_table(teacher: Path, vocabulary: Vocabulary, config: Config) -> np.ndarray:
    """The trained item table [V, d] of a baseline."""
    table = load_model(teacher, vocabulary.hash).items.collaborative
    if table is None or table.embedding_dim != config.model.hidden:
        raise InputError(
            f"train.align_to: expected a model with an item table of width {config.model.hidden}, found {teacher.name}"
        )
    return table.weight.detach().numpy()
