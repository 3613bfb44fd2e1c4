"""Checkpoints of fine-tuning in safetensors and JSON: nothing in them can run code when it is read."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmcfsr_merlin.errors import InputError

_STATE = "state"


def save_weights(path: Path, trained: dict) -> None:
    """Write named tensors under a temporary name and rename."""
    _write(path, {name: parameter.detach() for name, parameter in trained.items()}, {})


def load_weights(path: Path, trained: dict) -> None:
    """Copy the tensors of a file into the named parameters; InputError where they do not fit."""
    stored = load_file(str(path))
    if set(stored) != set(trained):
        raise InputError(f"{path} is of another model: remove the folder {path.parent} and start again")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[name])


def save_checkpoint(folder: Path, trained: dict, optimizer, schedule, state: dict) -> None:
    """Write weights, both moments of AdamW, the schedule's step and `state` into one file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in trained.items()}
    moments = optimizer.state_dict()["state"]
    for number, entry in moments.items():
        tensors |= {f"{kind}/{number}": value for kind, value in entry.items()}
    header = {_STATE: json.dumps(state | {"schedule": schedule.last_epoch})}
    _write(folder / "checkpoint.safetensors", tensors, header)


def load_checkpoint(folder: Path, trained: dict, optimizer, schedule, fresh: dict) -> dict:
    """Restore what `save_checkpoint` wrote and return its `state`; `fresh` where there is no checkpoint."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return fresh
    moments: dict[int, dict] = {}
    with safe_open(str(path), framework="pt") as stream, torch.no_grad():
        state = json.loads(stream.metadata()[_STATE])
        for key in stream.keys():  # noqa: SIM118 - not a dict
            kind, _, name = key.partition("/")
            if kind == "weight":
                trained[name].copy_(stream.get_tensor(key))
            else:
                moments.setdefault(int(name), {})[kind] = stream.get_tensor(key)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    schedule.last_epoch = state.pop("schedule")
    for group, base, rate in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = base * rate(schedule.last_epoch)
    return state


def _write(path: Path, tensors: dict, header: dict) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, str(temporary), metadata=header)
    temporary.replace(path)
