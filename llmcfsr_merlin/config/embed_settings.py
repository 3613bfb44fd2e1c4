"""Section `embed`: item attributes to semantic vectors (stage `embed`)."""

from typing import Literal

from pydantic import Field, model_validator

from llmcfsr_merlin.config.section import Section
from llmcfsr_merlin.config.tune_settings import TuneConfig


class EnrichConfig(Section):
    """Attributes that a language model writes for sparse items before they are embedded (off by default)."""

    enabled: bool = False
    """Enrich before embedding."""
    model: str = ""
    """gemma3-270m, or a Hugging Face name or folder of a causal language model (safetensors only)."""
    revision: str | None = None
    """Branch, tag or commit of the model."""
    fewer_than: int = Field(3, ge=1)
    """Items with fewer attributes are enriched."""
    max_new_tokens: int = Field(48, ge=1)
    """Longest text that the model may write for an item."""
    batch_size: int = Field(16, ge=1)
    """Items that the model writes for at a time."""


class EmbedConfig(Section):
    """Semantic vectors of the items (stage `embed`)."""

    model: str = "minilm"
    """minilm: the embedded all-MiniLM-L6-v2; mpnet, gemma3-270m: `llmcfsr encoders get` first; else a Hugging Face name
    or a local folder (safetensors only)."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face model."""
    template: Literal["generic", "yelp", "fashion", "beauty"] = "generic"
    """Which attributes the prompt shows, and in which order."""
    popularity: bool = False
    """Show review count, average stars and sales rank in the prompt: they leak what is to be predicted."""
    instruction: str = ""
    """Text before the attributes, for instruction-tuned models."""
    max_tokens: int = Field(128, ge=8)
    """Longer prompts are cut at the end."""
    pooling: Literal["mean", "last"] = "mean"
    """last: the last real token, for causal models such as LLaMA."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the language model's weights; the vectors are stored as float32."""
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    """8bit and 4bit need bitsandbytes and a CUDA GPU."""
    batch_size: int = Field(64, ge=1)
    """Texts a batch on a CPU."""
    batch_tokens: int = Field(65_536, ge=1)
    """Tokens a batch on a GPU, padding included; it is halved if memory does not hold it."""
    device: str = "auto"
    """auto: the GPU if there is one; else cpu, cuda or cuda:1."""
    workers: int = Field(1, ge=1)
    """Processes that encode shards side by side; on CUDA worker w uses GPU w."""
    reduction: Literal["none", "pca", "standardise"] = "none"
    """Of the stored vectors, for all that read them. pca: the `dimension` directions of most variance; standardise:
    every column to variance 1. Whitening is the network's (model.scorers.network.whiten)."""
    dimension: int | None = Field(None, ge=2)
    """Dimension after pca; None keeps the model's."""
    lexical: int = Field(128, ge=0)
    """Dimensions of the lexical vectors (word vectors trained on the prompts) beside the model's; 0: none."""
    tune: TuneConfig = TuneConfig()
    enrich: EnrichConfig = EnrichConfig()

    @model_validator(mode="after")
    def _consistent(self):
        if self.dimension and self.reduction != "pca":
            raise ValueError(f"dimension ({self.dimension}) needs reduction=pca, found {self.reduction}")
        if self.enrich.enabled and not self.enrich.model:
            raise ValueError("enrich.enabled needs enrich.model, a causal language model's name or folder")
        if self.tune.enabled and self.tune.method == "full" and self.quantisation != "none":
            raise ValueError(f"quantisation {self.quantisation} can only be tuned with tune.method=lora")
        return self
