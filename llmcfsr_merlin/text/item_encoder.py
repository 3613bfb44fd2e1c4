"""Encodes items as vectors by one recipe (model, template, pooling, reduction).

The stage `embed` and the addition of new items to a finished run both go through `ItemEncoder`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.dataset.vector_checks import check_encoded
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import hash_json, write_json
from llmcfsr_merlin.text.encoder import BATCH_TOKENS, TextEncoder
from llmcfsr_merlin.text.enrichment import Enricher
from llmcfsr_merlin.text.language_models import ModelSource, resolve_recorded
from llmcfsr_merlin.text.lexical import Lexical
from llmcfsr_merlin.text.prompts import Attributes, Prompter
from llmcfsr_merlin.text.reduction import Reduction
from llmcfsr_merlin.text.tuning.lora import ADAPTER, load_adapter

RECIPE = "encoder.json"
REDUCTION = "reduction.safetensors"
WORDS = "words.safetensors"  # the fitted lexical vectors, if there are any
TUNED = "tuned"  # the tuned model's folder beside RECIPE


@dataclass(frozen=True)
class EncoderRecipe:
    """Everything that determines an item's vector before the reduction. `model` is the record of a ModelSource."""

    model: dict
    template: str
    template_id: str
    instruction: str
    popularity: bool
    pooling: str
    max_tokens: int
    dtype: str
    quantisation: str
    tuned: dict | None = None
    """Key and sha256 of the fine-tuned weights, None for the base model."""
    enriched: dict | None = None
    """The enrichment's record, None if no attributes are generated."""

    @property
    def key(self) -> str:
        """Hash of the recipe: equal key and equal prompt imply equal vectors."""
        return hash_json(asdict(self))

    def save(self, directory: Path) -> None:
        """Write as JSON."""
        write_json(Path(directory) / RECIPE, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> "EncoderRecipe":
        """Read what `save` wrote; InputError if it is missing or not of this version."""
        path = Path(directory) / RECIPE
        try:
            recipe = cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise InputError(f"expected a recipe at {path}, found {error}: run `llmcfsr embed`") from error
        if recipe.template_id != recipe.prompter().template.id:
            raise InputError(
                f"{path}: expected template {recipe.prompter().template.id}, found {recipe.template_id}: "
                "run `llmcfsr embed --force`"
            )
        return recipe

    def prompter(self) -> Prompter:
        """The prompter of this recipe."""
        return Prompter.of(self.template, self.instruction, self.popularity)


@dataclass(frozen=True)
class EncodedRows:
    """Vectors of n rows before the reduction: vectors (n, D) float32 unit rows, zero if has_text (n,) is False.

    content: 16-byte hash of each prompt, None without text; cached: rows taken from the cache; tokens: tokens encoded;
    cut: prompts cut at max_tokens.
    """

    vectors: np.ndarray
    has_text: np.ndarray
    content: list[bytes | None]
    cached: int
    tokens: int
    cut: int


class KnownVectors(Protocol):
    """Vectors of an earlier run."""

    def get(self, wanted: list[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors (D,) of those content hashes that are known."""


class ItemEncoder:
    """A recipe with its model, loaded lazily: a fully cached run never loads it."""

    def __init__(
        self,
        recipe: EncoderRecipe,
        source: ModelSource,
        tuned: Path | None = None,
        *,
        batch_size: int = 64,
        batch_tokens: int = BATCH_TOKENS,
        device: str = "auto",
        enricher: Enricher | None = None,
    ):
        self.recipe = recipe
        self.prompter = recipe.prompter()
        self.source = source
        self.tuned = tuned
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.device = device
        self.enricher = enricher
        self._encoder: TextEncoder | None = None

    @classmethod
    def load(cls, directory: Path, *, batch_size: int = 64, device: str = "auto") -> "ItemEncoder":
        """The encoder that made the vectors of a finished stage `embed`; InputError if the model has changed."""
        recipe = EncoderRecipe.load(directory)
        source = resolve_recorded(recipe.model)
        tuned = Path(directory) / TUNED if recipe.tuned else None
        enricher = Enricher.of(recipe.enriched, None, device) if recipe.enriched else None
        return cls(recipe, source, tuned, batch_size=batch_size, device=device, enricher=enricher)

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder, loaded on first use."""
        if self._encoder is None:
            adapter = self.tuned if self.tuned and (self.tuned / ADAPTER).is_file() else None
            source = replace(self.source, folder=str(self.tuned)) if self.tuned and not adapter else self.source
            self._encoder = TextEncoder.load(
                source,
                pooling=self.recipe.pooling,
                max_tokens=self.recipe.max_tokens,
                batch_size=self.batch_size,
                batch_tokens=self.batch_tokens,
                dtype=self.recipe.dtype,
                device=self.device,
                quantisation=self.recipe.quantisation,
            )
            if adapter:
                self._encoder.model = load_adapter(self._encoder.model, adapter).eval()
        return self._encoder

    def attributes(self, rows: Sequence[Mapping[str, object]]) -> list[Attributes]:
        """The attributes of each row, enriched if the recipe says so."""
        found = [self.prompter.attributes(row) for row in rows]
        return self.enricher(found) if self.enricher else found

    def prompts(self, rows: Sequence[Mapping[str, object]]) -> list[str]:
        """The prompt of each row; "" if it has no attribute."""
        return [self.prompter.render(attributes) for attributes in self.attributes(rows)]

    def encode_rows(
        self,
        rows: Sequence[Mapping[str, object]],
        cache: KnownVectors | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> EncodedRows:
        """Encode rows of the items table (item_id and attributes).

        cache: a VectorCache of the same recipe. Equal prompts are encoded once. Raises InputError with item ids if
        vectors are NaN, zero or constant.
        """
        prompts = self.prompts(rows)
        content = [hashlib.blake2b(prompt.encode(), digest_size=16).digest() if prompt else None for prompt in prompts]
        first: dict[bytes, int] = {}  # content hash -> its first row
        for row, digest in enumerate(content):
            if digest is not None:
                first.setdefault(digest, row)
        known = cache.get(list(first)) if cache else {}
        taken = set(known)
        new = [digest for digest in first if digest not in known]
        tokens = self.encoder.tokenise([prompts[first[digest]] for digest in new]) if new else []
        # Different texts can have the same tokens (letter case, truncation); those are encoded only once too.
        distinct: dict[tuple[int, ...], list[bytes]] = {}
        for digest, row_tokens in zip(new, tokens):
            distinct.setdefault(tuple(row_tokens), []).append(digest)
        if distinct:
            encoded = self.encoder.encode_tokens(list(distinct), progress)
            ids = [str(rows[first[digests[0]]].get(ITEM)) for digests in distinct.values()]
            check_encoded(encoded, ids, f"model {self.recipe.model['name']}")
            for vector, digests in zip(encoded, distinct.values()):
                known.update(dict.fromkeys(digests, vector))
        size = len(next(iter(known.values()))) if known else self.encoder.dimension
        vectors = np.zeros((len(rows), size), dtype=np.float32)
        for row, digest in enumerate(content):
            if digest is not None:
                vectors[row] = known[digest]
        return EncodedRows(
            vectors,
            np.array([digest is not None for digest in content], dtype=bool),
            content,
            cached=sum(digest in taken for digest in content),
            tokens=sum(len(row) for row in distinct),
            cut=sum(len(row) >= self.encoder.max_tokens for row in tokens),
        )


def encode_items(
    directory: Path, rows: Sequence[Mapping[str, object]], *, device: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of new items, exactly as the finished stage `embed` in `directory` would have computed them.

    rows: item_id and the attribute columns of the items table. Returns vectors (n, R) float32 after the stored
    reduction, the mean vector if an item has no attribute, and has_text (n,) bool.
    """
    encoder = ItemEncoder.load(directory, device=device)
    reduction = Reduction.load(Path(directory) / REDUCTION)
    encoded = encoder.encode_rows(rows)
    return reduction.finish(encoded.vectors, encoded.has_text), encoded.has_text


def encode_words(directory: Path, rows: Sequence[Mapping[str, object]], *, device: str = "auto") -> np.ndarray | None:
    """Lexical vectors (n, E) float32 of new items, as the finished stage `embed` in `directory` would have computed
    them.

    None if the stage wrote none.
    """
    path = Path(directory) / WORDS
    if not path.is_file():
        return None
    return Lexical.load(path).encode(ItemEncoder.load(directory, device=device).prompts(rows))
