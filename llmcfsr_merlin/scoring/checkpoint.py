"""A trained model on disk: safetensors weights and a JSON description, never a pickle."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.names import HISTORY_RULES, MODEL_CONFIG, MODEL_WEIGHTS
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import only_allowed
from llmcfsr_merlin.runtime.failures import machine_failure
from llmcfsr_merlin.runtime.files import save_tensors, write_json
from llmcfsr_merlin.runtime.manifest import remake
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.old_models import upgrade, with_new_settings
from llmcfsr_merlin.scoring.scorer import Shape

FORMAT = 2  # format 1: a network with fixed extra scores, before scorers existed
_LARGE = 1 << 24  # numbers of a tensor that is not filled before it is read from a file


def save_model(model: Ensemble, directory: Path, vocabulary_hash: str) -> None:
    """Write model.safetensors (weights, frozen buffers, item vectors) and model.json."""
    save_tensors(state(model), Path(directory) / MODEL_WEIGHTS)
    write_json(Path(directory) / MODEL_CONFIG, describe(model, vocabulary_hash))


def describe(model: Ensemble, vocabulary_hash: str) -> dict:
    """The description that model.json holds, from which `load_model` builds the model."""
    description: dict = {
        "format": FORMAT,
        "model": model.config.model_dump(mode="json"),
        "shape": model.shape._asdict(),
        "max_length": model.shape.max_length,
        "vocabulary": vocabulary_hash,
        "history_weights": model.history_weights,
    }
    if model.history_rule is not None:
        description["history_rule"] = model.history_rule
    if len(model.retired):
        description["retired"] = model.retired.tolist()
    return description


def state(model: Ensemble) -> dict[str, Tensor]:
    """The complete state of a model: `<scorer>.<name>` and `vectors.<name>`, on the CPU."""
    tensors = {
        f"{name}/{key}": tensor for name, part in model.scorers.items() for key, tensor in part.state_dict().items()
    }
    tensors |= {f"vectors/{name}": tensor for name, tensor in model.vectors.named_buffers()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_state(model: Ensemble, tensors: dict[str, Tensor]) -> None:
    """Give the result of `state` to the modules of the same model; ValueError if names or shapes differ.

    The tensors are taken, not copied: of a file they stay memory-mapped, one copy for all processes that read it.
    """
    taken = set()
    for name, buffer in list(model.vectors.named_buffers()):
        if tensors[f"vectors/{name}"].shape != buffer.shape:
            raise ValueError(f"vectors/{name} has shape {tuple(tensors[f'vectors/{name}'].shape)}")
        setattr(model.vectors, name, tensors[f"vectors/{name}"])
        taken.add(f"vectors/{name}")
    for name, part in model.scorers.items():
        own = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        for key in part.DATA_SIZED:
            if key in own:
                setattr(part, key, torch.empty_like(own[key]))
        part.load_state_dict(own, strict=True, assign=True)
        taken |= {f"{name}/{key}" for key in own}
    if taken != set(tensors):
        raise ValueError(f"{sorted(set(tensors) - taken)[0]} belongs to no scorer of the model")


class _Unfilled(TorchFunctionMode):
    """Builds a large model that a file is loaded into without writing its numbers first: for a million items, that
    takes longer than reading the file."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.normal_, torch.nn.init.normal_):
            filled = args[0] if args else kwargs["tensor"]
            if filled.numel() >= _LARGE:
                return filled
        if function is torch.zeros and kwargs.keys() <= {"dtype"}:
            size = args[0] if isinstance(args[0], (tuple, list)) else args
            if math.prod(size) >= _LARGE:  # numpy's zeros take no memory until they are written or read
                one = torch.empty(0, **kwargs)
                given = np.zeros(math.prod(size) * one.element_size(), np.uint8)
                return torch.from_numpy(given).view(one.dtype).view(size)
        return function(*args, **kwargs)


def _history_weights(description: dict, model: Ensemble) -> dict[str, dict[str, float]]:
    """The history weights of model.json (older models have none); ValueError if they do not fit the model."""
    found = description.get("history_weights", {})
    for rule, weights in found.items():
        if rule not in HISTORY_RULES or weights.keys() != model.weights.keys():
            raise ValueError(f"history_weights: {rule} has weights of {', '.join(weights)}")
    # In feature order, in which they are compared.
    return {rule: {name: float(weights[name]) for name in model.weights} for rule, weights in found.items()}


def load_model(
    directory: Path, vocabulary_hash: str | None = None, device: str = "cpu", allow: Iterable[str] = ()
) -> Ensemble:
    """Build the model of model.json and read its weights; InputError if they do not belong together.

    allow: names `module:Class` from outside this package that the model may import (see runtime/extensions).
    """
    directory = Path(directory)
    try:
        description = json.loads((directory / MODEL_CONFIG).read_text())
        tensors = load_file(str(directory / MODEL_WEIGHTS))
        if "format" not in description:
            description, tensors = upgrade(description, tensors)
        if description["format"] == FORMAT:
            description, tensors = with_new_settings(description, tensors)
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']}, this version reads {FORMAT}")
        with only_allowed(allow), _Unfilled():
            config = ModelConfig.model_validate(description["model"])
            model = Ensemble.empty(config, Shape(**description["shape"]))
        load_state(model, tensors)
        model.history_weights = _history_weights(description, model)
        model.history_rule = description.get("history_rule")
        if model.history_rule not in (None, *HISTORY_RULES):
            raise ValueError(f"history_rule {model.history_rule!r}, expected {' or '.join(HISTORY_RULES)}")
        model.retire(description.get("retired", ()))
    except FileNotFoundError as error:
        raise InputError(
            f"expected a trained model in {directory}, found no {Path(error.filename or MODEL_WEIGHTS).name}: "
            f"{remake(directory, 'train')}"
        ) from error
    except Exception as error:
        if machine_failure(error):
            raise
        raise InputError(
            f"{directory} holds no model that this version can read ({' '.join(str(error).split())[:300]}): "
            f"{remake(directory, 'train', force=True)}"
        ) from error
    found = description["vocabulary"]
    if vocabulary_hash is not None and found != vocabulary_hash:
        raise InputError(
            f"the model in {directory} was trained with another vocabulary ({found[:12]}, this one is "
            f"{vocabulary_hash[:12]}): {remake(directory, 'train', force=True)}"
        )
    return model.to(torch.device(device)).eval()
