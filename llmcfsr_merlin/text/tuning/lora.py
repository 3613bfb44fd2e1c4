"""Low-rank adapters with peft, and loading of tuned models: adapters or full weights, safetensors only."""

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Projections by family; all of them, as LLMEmb tunes LLaMA (arXiv 2409.19925).
_CAUSAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ENCODER = ("query", "key", "value", "q", "k", "v")  # BERT's; MPNet's
_NO_POOLER = r"(?!.*pooler).*\.(query|key|value|q|k|v|o|dense)"  # the pooler reads the first token and is not used
ADAPTER = "adapter_model.safetensors"


def attach_lora(model: "PreTrainedModel", settings: TuneConfig) -> "PeftModel":
    """Wrap a bare transformers model with adapters on all its projections (LLaMA, Qwen, Gemma; BERT, MPNet)."""
    peft = _peft()
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = [name for name in _CAUSAL if name in names] or (_NO_POOLER if names & set(_ENCODER) else None)
    if not targets:
        raise InputError(
            f"low-rank adapters: expected projections named {', '.join((*_CAUSAL[:3], *_ENCODER[:3]))}, ..., "
            f"found none in {type(model).__name__} (embed.tune.method=full needs none)"
        )
    if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
        model = peft.prepare_model_for_kbit_training(model)
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets,
        ),
    )


def save_tuned(model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a tuned model as a folder that transformers (or, for adapters, peft) can load; no pickles."""
    model.save_pretrained(str(folder), safe_serialization=True)
    if not (folder / ADAPTER).is_file():
        tokenizer.save_pretrained(folder)


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel | PeftModel":
    """Load the adapter of `folder` into the base model and merge it (not into quantised weights)."""
    peft = _peft()
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    kept = {name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    model = peft.get_peft_model(model, peft.LoraConfig(**kept))
    result = peft.set_peft_model_state_dict(model, load_file(str(folder / ADAPTER)))
    if getattr(result, "unexpected_keys", None):
        raise InputError(
            f"{folder}: expected an adapter of this model, found {result.unexpected_keys[0]}: "
            "run `llmcfsr embed --force`"
        )
    quantised = getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)
    return model if quantised else model.merge_and_unload()


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise MissingDependency(
            f"low-rank adapters need peft ({error}): pip install peft==0.13.2 (the newest beside transformers 5)"
        ) from error
    return peft
