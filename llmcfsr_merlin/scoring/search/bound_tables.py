"""The tables of the scorers' bounds on disk: safetensors beside a sealed model, memory-mapped when they are read."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors, sha256_file, write_json
from llmcfsr_merlin.runtime.mapped import read_at_random
from llmcfsr_merlin.runtime.progress import announced
from llmcfsr_merlin.scoring.ensemble import Ensemble

TABLES, SEAL = "search.safetensors", "search.json"
FORMAT = 2  # format 1: tables of nearest items
_LARGE = 1 << 20  # bytes; what is smaller is in memory soon


def write_tables(model: Ensemble, folder: Path) -> None:
    """Build the tables of a model and write them into `folder`; nothing if its scorers have none."""
    tensors: dict[str, torch.Tensor] = {}
    for name, part in model.scorers.items():
        with torch.inference_mode(), announced(f"tables of the shortlist: {name}"):
            tensors |= {f"{name}/{key}": tensor.contiguous() for key, tensor in part.tables().items()}
    if tensors:
        save_tensors(tensors, folder / TABLES)
        seal = {"format": FORMAT, "items": model.shape.n_items, "sha256": sha256_file(folder / TABLES)}
        write_json(folder / SEAL, seal)


def hash_tables(folder: Path) -> str | None:
    """What `take_tables` checks, the sha256 of the tables beside a model; None if there are none."""
    return sha256_file(folder / TABLES) if (folder / SEAL).is_file() and (folder / TABLES).is_file() else None


def take_tables(model: Ensemble, folder: Path, sha256: str | None = None, by_row: bool = True) -> bool:
    """Give a model the tables beside it; False if there are none. InputError if they are damaged or another model's.

    sha256: of hash_tables, where that has been computed. by_row: from now on rows of the model and of the tables are
    read singly, all of a table only where a scorer says so, and what is mapped from their files need not be in memory.
    """
    if not (folder / SEAL).is_file():
        return False
    seal = json.loads((folder / SEAL).read_text())
    if seal.get("format") != FORMAT:
        raise InputError(f"{folder / TABLES} is of another version of this package: export again")
    if seal["items"] != model.shape.n_items or (sha256 or hash_tables(folder)) != seal["sha256"]:
        raise InputError(f"{folder / TABLES} is damaged or belongs to another model: export again")
    tensors = load_file(str(folder / TABLES))
    for name, part in model.scorers.items():
        own = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        if own:
            part.take_tables(own)
        if by_row:
            _read_by_row(tensor for key, tensor in own.items() if key not in part.READ_WHOLE)
            _read_by_row(part.state_dict().values())
    if by_row:
        _read_by_row(model.vectors.buffers())
    return True


def _read_by_row(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        if tensor.ndim > 1 and tensor.nbytes >= _LARGE:
            read_at_random(tensor.data_ptr(), tensor.nbytes)
