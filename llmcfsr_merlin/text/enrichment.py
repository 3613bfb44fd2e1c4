"""Attributes that a language model writes for sparse items: off by default, cached, and marked."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llmcfsr_merlin.config.embed_settings import EnrichConfig
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.failures import machine_failure
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.text.language_models import (
    ModelSource,
    dtype_argument,
    load_tokenizer,
    resolve_recorded,
)
from llmcfsr_merlin.text.prompts import Attributes

MARK = "written by a model"
"""Label of the attribute, so that no reader takes it for the catalogue's own words."""
INSTRUCTION = "Describe this item in one sentence: what it is, what it is for and who uses it.\n{item}\nDescription:"
_MAX_PROMPT = 512  # tokens


class Enricher:
    """Adds one attribute to items that have fewer than `settings.fewer_than`; items without any are left alone."""

    def __init__(self, settings: EnrichConfig, source: ModelSource, cache: Path | None, device: str = "auto"):
        """cache: folder of part-*.parquet (content hash, text); what is in it is not generated again."""
        self.settings = settings
        self.source = source
        self.cache = cache
        self.device = str(choose_device(device, "embed.device"))
        self._loaded: tuple[Any, Any] | None = None
        self._texts: dict[bytes, str] = {}
        for path in sorted(cache.glob("part-*.parquet")) if cache else ():
            table = pq.read_table(path)
            self._texts.update(zip(table["content"].to_pylist(), table["text"].to_pylist()))

    @classmethod
    def of(cls, record: dict, cache: Path | None, device: str = "auto") -> "Enricher":
        """The enricher of a recipe's record."""
        model = record["model"]
        settings = EnrichConfig(
            enabled=True, model=model["name"], fewer_than=record["fewer_than"], max_new_tokens=record["max_new_tokens"]
        )
        return cls(settings, resolve_recorded(model), cache, device)

    def record(self) -> dict:
        """For the recipe: two enrichers of the same record write the same."""
        kept = {"fewer_than": self.settings.fewer_than, "max_new_tokens": self.settings.max_new_tokens}
        return {"model": self.source.record(), "instruction": INSTRUCTION, **kept}

    def __call__(self, rows: Sequence[Attributes]) -> list[Attributes]:
        """The rows, with (MARK, text) behind the attributes of the sparse ones."""
        sparse = [index for index, row in enumerate(rows) if 0 < len(row) < self.settings.fewer_than]
        keys = {index: self._key(rows[index]) for index in sparse}
        missing = {key: index for index, key in keys.items() if key not in self._texts}
        if missing:
            self._write(dict(zip(missing, self._generate([rows[index] for index in missing.values()]))))
        return [
            [*row, (MARK, self._texts[keys[index]])] if index in keys and self._texts[keys[index]] else row
            for index, row in enumerate(rows)
        ]

    def _key(self, row: Attributes) -> bytes:
        return hashlib.blake2b(repr((sorted(self.record().items(), key=str), row)).encode(), digest_size=16).digest()

    def _write(self, texts: dict[bytes, str]) -> None:
        self._texts.update(texts)
        if self.cache is None:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        table = pa.table({"content": pa.array(texts, type=pa.binary(16)), "text": list(texts.values())})
        name = hashlib.blake2b(b"".join(texts), digest_size=8).hexdigest()
        temporary = self.cache / f".{name}.{os.getpid()}"
        pq.write_table(table, temporary)
        temporary.replace(self.cache / f"part-{name}.parquet")

    def _generate(self, rows: Sequence[Attributes]) -> list[str]:
        if self._loaded is None:
            self._loaded = self._load()
        (model, tokenizer), texts = self._loaded, []
        for start in range(0, len(rows), self.settings.batch_size):
            prompts = [
                INSTRUCTION.format(item="; ".join(f"{label}: {value}" for label, value in row))
                for row in rows[start : start + self.settings.batch_size]
            ]
            batch = tokenizer(prompts, return_tensors="pt", padding=True, truncation=True, max_length=_MAX_PROMPT)
            width = batch["input_ids"].shape[1]
            with torch.inference_mode():
                output = model.generate(
                    input_ids=batch["input_ids"].to(self.device),
                    attention_mask=batch["attention_mask"].to(self.device),
                    max_new_tokens=self.settings.max_new_tokens,
                    do_sample=False,  # the same item always gets the same words
                    pad_token_id=tokenizer.pad_token_id,
                )
            for row in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True):
                texts.append(clean(row.strip().split("\n")[0], 500))
        return texts

    def _load(self) -> tuple[Any, Any]:
        """The language model and its tokenizer."""
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.source.folder, local_files_only=True, **{dtype_argument(): dtype}
            )
        except (ValueError, KeyError, OSError) as error:
            if machine_failure(error):
                raise
            raise InputError(f"enrich.model: {self.source.name} is no causal language model ({error})") from error
        tokenizer = load_tokenizer(self.source, _MAX_PROMPT)
        tokenizer.padding_side = "left"  # generation goes on behind the last token
        return model.to(self.device).eval(), tokenizer
