"""A trained model on disk: safetensors weights and a JSON configuration, never a pickle."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.dataset.names import MODEL_CONFIG, MODEL_WEIGHTS
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.failures import machine_failure
from llmcfsr_merlin.runtime.files import save_tensors, write_json
from llmcfsr_merlin.runtime.manifest import remake
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def save_model(network: DualViewNetwork, directory: Path, vocabulary_hash: str) -> None:
    """Write model.safetensors (weights and frozen buffers) and model.json."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_tensors(weights, Path(directory) / MODEL_WEIGHTS)
    vectors, lexical = weights.get("items.vectors"), weights.get("lexical")
    description = {
        "model": network.config.model_dump(),
        "rows": network.rows,
        "max_length": network.max_length,
        "semantic_dimension": None if vectors is None else vectors.shape[1],
        "lexical_dimension": None if lexical is None else lexical.shape[1],
        "vocabulary": vocabulary_hash,
    }
    write_json(Path(directory) / MODEL_CONFIG, description)


def load_model(directory: Path, vocabulary_hash: str | None = None, device: str = "cpu") -> DualViewNetwork:
    """Build the network from model.json and read its weights; InputError where they do not belong together."""
    directory = Path(directory)
    try:
        description = json.loads((directory / MODEL_CONFIG).read_text())
        found = description.pop("vocabulary")
        config = ModelConfig.model_validate(description.pop("model"))
        network = DualViewNetwork(config, **description)
        network.load_state_dict(load_file(str(directory / MODEL_WEIGHTS)), strict=True)
    except FileNotFoundError as error:
        raise InputError(
            f"expected a trained model in {directory}, found no {Path(error.filename or MODEL_WEIGHTS).name}: "
            f"{remake(directory, 'train')}"
        ) from error
    except Exception as error:
        if machine_failure(error):
            raise
        raise InputError(
            f"{directory} holds no model that this version can read ({' '.join(str(error).split())[:200]}): "
            f"{remake(directory, 'train', force=True)}"
        ) from error
    if vocabulary_hash is not None and found != vocabulary_hash:
        raise InputError(
            f"the model in {directory} was trained with another vocabulary ({found[:12]}, this one is "
            f"{vocabulary_hash[:12]}): {remake(directory, 'train', force=True)}"
        )
    return network.to(torch.device(device)).eval()
