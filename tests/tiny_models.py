"""Language models of random weights that take no time, as folders that transformers reads."""

from pathlib import Path

import pytest

WORDS = [
    "[PAD]", "[UNK]", "</s>", "title", "brand", "categories", "description", "red", "blue", "green", "shampoo",
    "polish", "cream", "soap", "acme", "bolt", "corex", "hair", "nail", "skin", ":", ";", ",", *"0123456789",
]  # fmt: skip

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def write_bert(folder: Path) -> Path:
    """A 2-layer BERT encoder, hidden 32."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return _written(
        folder, BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **_SIZES)), pad=True
    )


def write_llama(folder: Path) -> Path:
    """A 2-layer LLaMA, hidden 32, without a head or a padding token (as LLaMA has none)."""
    import torch
    import transformers

    if not hasattr(transformers, "LlamaModel"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA; 4.28 is the first")
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **_SIZES))
    return _written(folder, model, pad=False)


def _written(folder: Path, model, pad: bool) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    special = {"pad_token": "[PAD]"} if pad else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>", **special).save_pretrained(
        folder
    )
    return folder
