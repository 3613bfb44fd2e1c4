"""Tiny language models of random weights, and a small items table."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WORDS = [
    "[PAD]", "[UNK]", "</s>", "title", "brand", "categories", "description", "red", "blue", "green", "shampoo",
    "polish", "cream", "soap", "acme", "bolt", "corex", "hair", "nail", "skin", ":", ";", ",", *"0123456789",
]  # fmt: skip


def _tokenizer(folder, pad):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    special = {"pad_token": "[PAD]"} if pad else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>", **special).save_pretrained(
        folder
    )


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a 2-layer BERT encoder, hidden 32, random weights."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes))
    model.save_pretrained(folder, safe_serialization=True)
    _tokenizer(folder, pad=True)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a 2-layer LLaMA, hidden 32, random weights, no padding token (as LLaMA has none)."""
    import torch
    import transformers

    if not hasattr(transformers, "LlamaModel"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA; 4.28 is the first")
    from transformers import LlamaConfig, LlamaModel

    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = LlamaModel(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes))
    model.save_pretrained(folder, safe_serialization=True)
    _tokenizer(folder, pad=False)
    return folder


def catalogue(count=40):
    """Items whose titles differ; item 3 has no attribute at all, item 4 no brand."""
    colours, things, brands = (
        ("red", "blue", "green"),
        ("shampoo", "polish", "cream", "soap"),
        ("acme", "bolt", "corex"),
    )
    rows = []
    for number in range(count):
        rows.append(
            {
                "item_id": f"i{number}",
                "title": f"{colours[number % 3]} {things[number % 4]} {number}",
                "brand": brands[number % 3],
                "categories": [("hair", "nail", "skin")[number % 3], things[number % 4]],
            }
        )
    for row in rows[3:4]:
        row.update(title=None, brand="", categories=[])
    for row in rows[4:5]:
        row.update(brand=None)
    return rows


@pytest.fixture
def items_dir(tmp_path):
    """The catalogue in two part files."""
    return write_items(tmp_path / "items", catalogue())


def write_items(folder, rows, parts=2):
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("title", pa.string()),
            ("brand", pa.string()),
            ("categories", pa.list_(pa.string())),
        ]
    )
    size = -(-len(rows) // parts)
    for part in range(parts):
        chunk = rows[part * size : (part + 1) * size]
        pq.write_table(
            pa.Table.from_pylist(chunk, schema=schema), folder / f"part-{part:05d}.parquet", row_group_size=7
        )
    return folder
