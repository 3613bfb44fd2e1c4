"""The tables of the scorers' bounds on disk: safetensors beside a sealed model, memory-mapped when they are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors, sha256_file, write_json
from llmcfsr_merlin.scoring.ensemble import Ensemble

TABLES, SEAL = "search.safetensors", "search.json"


def write_tables(
    model: Ensemble,
    folder: Path,
    scratch: Path,
    known: Ensemble | None = None,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Build the tables of a model and write them into `folder`; nothing if its scorers have none.

    scratch: a folder (created, removed when all is done) where an interrupted build goes on. known: a model with tables
    whose items are the leading ones of `model`, with the same vectors: only what is new is compared.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in model.scorers.items():
        before = None if known is None else known.scorers.get(name)
        (scratch / name).mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            made = part.tables(before, scratch / name, report)
        tensors |= {f"{name}/{key}": tensor.contiguous() for key, tensor in made.items()}
    if tensors:
        save_tensors(tensors, folder / TABLES)
        write_json(folder / SEAL, {"sha256": sha256_file(folder / TABLES), "items": model.shape.n_items})
    shutil.rmtree(scratch, ignore_errors=True)


def take_tables(model: Ensemble, folder: Path) -> bool:
    """Give a model the tables beside it; False if there are none. InputError if they are damaged or another model's."""
    if not (folder / SEAL).is_file():
        return False
    seal = json.loads((folder / SEAL).read_text())
    if seal["items"] != model.shape.n_items or sha256_file(folder / TABLES) != seal["sha256"]:
        raise InputError(f"{folder / TABLES} is damaged or belongs to another model: export again")
    tensors = load_file(str(folder / TABLES))
    for name, part in model.scorers.items():
        own = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        if own:
            part.take_tables(own)
    return True


def extends(model: Ensemble, known: Ensemble) -> bool:
    """Whether the items of `known` are the leading ones of `model`, by their vectors."""
    pairs = [(getattr(model.vectors, name), getattr(known.vectors, name)) for name in ("semantic", "lexical")]
    return all(
        (new is None and old is None)
        or (new is not None and old is not None and len(old) <= len(new) and torch.equal(new[: len(old)], old))
        for new, old in pairs
    )
