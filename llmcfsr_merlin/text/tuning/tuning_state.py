"""Checkpoints of fine-tuning in safetensors and JSON: reading them cannot run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.failures import machine_failure
from llmcfsr_merlin.runtime.files import save_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
_STATE = "state"
Parameters: TypeAlias = Mapping[str, Parameter]


def save_weights(path: Path, trained: Parameters) -> None:
    """Write named tensors under a temporary name and rename."""
    _write(path, {name: parameter.detach() for name, parameter in trained.items()}, {})


def load_weights(path: Path, trained: Parameters) -> None:
    """Copy the tensors of a file into the named parameters; InputError if they do not fit."""
    stored = load_file(str(path))
    if set(stored) != set(trained):
        raise InputError(f"{path} belongs to another model: remove the folder {path.parent} and start again")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[name])


def save_checkpoint(folder: Path, trained: Parameters, optimizer: Optimizer, schedule: LambdaLR, state: dict) -> None:
    """Write weights, both moments of AdamW, the schedule's step and `state` into one file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in trained.items()}
    moments = optimizer.state_dict()["state"]
    for number, entry in moments.items():
        tensors |= {f"{kind}/{number}": value for kind, value in entry.items()}
    header = {_STATE: json.dumps(state | {"schedule": schedule.last_epoch})}
    _write(folder / CHECKPOINT_FILE, tensors, header)


def load_checkpoint(folder: Path, trained: Parameters, optimizer: Optimizer, schedule: LambdaLR, fresh: dict) -> dict:
    """Restore what `save_checkpoint` wrote and return its `state`; `fresh` if there is no checkpoint.

    An unreadable checkpoint, or one of other weights, is removed.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return fresh
    try:
        return _restore(path, trained, optimizer, schedule)
    except Exception as error:  # safetensors has its own errors, and a truncated header can raise anything
        if machine_failure(error):
            raise
        path.unlink()
        return fresh


def is_readable(path: Path) -> bool:
    """Whether all tensors of a file of save_weights or save_checkpoint can be read."""
    try:
        load_file(str(path))
    except Exception as error:
        if machine_failure(error):
            raise
        return False
    return True


def _restore(path: Path, trained: Parameters, optimizer: Optimizer, schedule: LambdaLR) -> dict:
    moments: dict[int, dict] = {}
    with safe_open(str(path), framework="pt") as stream, torch.no_grad():
        state = json.loads(stream.metadata()[_STATE])
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
        weights = {key: tensor for key, tensor in tensors.items() if key.startswith("weight/")}
        if {f"weight/{name}": parameter.shape for name, parameter in trained.items()} != {
            key: tensor.shape for key, tensor in weights.items()
        }:
            raise ValueError("of another model")
        for name, parameter in trained.items():  # everything is read: no partial restore from here on
            parameter.copy_(weights[f"weight/{name}"])
        for key in tensors.keys() - weights.keys():
            kind, _, number = key.partition("/")
            moments.setdefault(int(number), {})[kind] = tensors[key]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    schedule.last_epoch = state.pop("schedule")
    for group, base, rate in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = base * rate(schedule.last_epoch)
    return state


def _write(path: Path, tensors: dict, header: dict) -> None:
    save_tensors({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, header)
