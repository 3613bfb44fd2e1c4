"""Chooses the device that torch computes on."""

import torch

from llmcfsr_merlin.runtime.errors import InputError


def choose_device(name: str, setting: str = "train.device") -> torch.device:
    """`auto` is the GPU if there is one; InputError, which names `setting`, for an unavailable device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"{setting}: expected a CUDA device for {name!r}, found none: use cpu or auto")
    return torch.device(name)
