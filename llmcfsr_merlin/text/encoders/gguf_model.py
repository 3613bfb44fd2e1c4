"""Converts a GGUF file (quantised weights, llama.cpp's format) to a safetensors folder."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.files import save_tensors, write_json
from llmcfsr_merlin.runtime.supported import fits

_TRANSFORMERS = "5.17"  # the oldest tested version
_ORDINARY, _CONTROL, _OWN = 1, 3, 4  # token types in GGUF: merged; special; user-defined
_SPACE = "▁"  # SentencePiece's space


def check_gguf(name: str, *, convert: bool) -> None:
    """InputError if transformers is too old for the model `name`; MissingDependency if it cannot be converted."""
    found = version("transformers")
    if fits(found, f"<{_TRANSFORMERS}"):
        raise InputError(
            f"{name}: expected transformers {_TRANSFORMERS} or newer, found {found}: use the "
            "profile `current` (Python 3.12 or 3.13) or constraints-encode.txt"
        )
    if convert and importlib.util.find_spec("gguf") is None:
        raise MissingDependency(f"{name} is read by the package gguf: pip install --no-deps gguf==0.19.0")


def convert_gguf(file: Path, folder: Path) -> None:
    """Write model.safetensors (bfloat16), config.json and the tokenizer of a GGUF file into `folder`."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, dtype=torch.bfloat16
    )
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    write_json(folder / "config.json", {**config, "architectures": [type(model).__name__], "dtype": "bfloat16"})
    fields = GGUFReader(file).fields

    def read(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    tokens = read("tokens")
    special = {
        name: tokens[read(f"{long}_token_id")]
        for name, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    write_tokenizer(folder, tokens, read("scores"), read("token_type"), special)


def write_tokenizer(
    folder: Path, tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], special: dict[str, str]
) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-fallback BPE (SentencePiece's, as Gemma and LLaMA use).

    tokens, scores, kinds: of each id. special: the tokens bos, eos, unk and pad. transformers 5.17 takes the ranks of
    the merges, which is what the scores are, for log-probabilities ("▁lipstick" becomes "▁l", "ip", "st", "ick").
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    ids = {token: number for number, token in enumerate(tokens)}
    ordinary = [number for number, kind in enumerate(kinds) if kind == _ORDINARY]
    tokenizer = Tokenizer(
        BPE(
            vocab=ids,
            merges=merges([tokens[number] for number in ordinary], [scores[number] for number in ordinary]),
            unk_token=special["unk"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special['bos']} $A",
        pair=f"{special['bos']} $A {special['bos']} $B",
        special_tokens=[(special["bos"], ids[special["bos"]])],
    )
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, kinds) if kind == _OWN])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": token for name, token in special.items()}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The BPE merges in order: a token results from any pair of tokens that concatenates to it, ranked by its score.

    >>> merges(["a", "b", "c", "ab", "abc"], [-3, -4, -5, -0.0, -1])
    [('a', 'b'), ('ab', 'c')]
    """
    ids = {token: number for number, token in enumerate(tokens)}
    found = [
        (-score, -cut, cut - len(token), ids[token[:cut]], ids[token[cut:]])
        for token, score in zip(tokens, scores)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(tokens[left], tokens[right]) for *_, left, right in sorted(found)]
