"""Section `embed.tune`: contrastive fine-tuning of the language model (inside stage `embed`)."""

from typing import Literal

from pydantic import Field

from llmcfsr_merlin.config.section import Section


class TuneConfig(Section):
    """Contrastive fine-tuning of the language model on two augmented copies of each item (inside stage `embed`)."""

    enabled: bool = False
    """Fine-tune the model before it encodes."""
    method: Literal["full", "lora"] = "full"
    """full: all weights, for small encoders; lora: low-rank adapters (peft), for causal LMs and large encoders."""
    drop: float = Field(0.4, ge=0, lt=1)
    """Share r of the attributes that each copy drops; at least one is kept."""
    temperature: float = Field(0.05, gt=0)
    """Temperature of the contrastive softmax over cosines."""
    epochs: int = Field(3, ge=1)
    """Maximum number of epochs; tuning may stop earlier (patience)."""
    batch_size: int = Field(128, ge=2)
    """Items per contrastive batch, over all processes: every other item of the batch is a negative."""
    micro_batch: int = Field(64, ge=1)
    """Texts whose activations one process holds at once; larger contrastive batches use gradient caching."""
    accumulation: int = Field(1, ge=1)
    """Batches per optimizer step."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate, at the end of the warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps used for warm-up; then linear decay to zero."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    lora_rank: int = Field(8, ge=1)
    """method=lora: rank of the adapters."""
    lora_alpha: int = Field(16, ge=1)
    """method=lora: the adapters are scaled by lora_alpha / lora_rank."""
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    """method=lora: dropout before the adapters."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward pass in mixed precision; the weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    cooccurrence: float = Field(0.0, ge=0, le=1)
    """Share of the pairs whose second copy comes from a neighbouring item in a training sequence."""
    max_items: int = Field(200_000, ge=10)
    """Items used for tuning, evenly spread over a larger table."""
    holdout: float = Field(0.05, gt=0, lt=0.5)
    """Share of these items (at most 1000) held out: attribute retrieval on them decides when to stop."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between two evaluations, each followed by a checkpoint."""
    patience: int = Field(5, ge=1)
    """Evaluations without better attribute retrieval before tuning stops."""
    seed: int = 42
    """Seed of shuffling, augmentation and dropout."""
