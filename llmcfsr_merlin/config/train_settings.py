"""Section `train`: training of the network (stage `train`)."""

from typing import Literal

from pydantic import Field, field_validator

from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.config.section import Section, known_or_own

LOSSES = ("uniform_softmax", "sampled_softmax", "full_softmax", "in_batch", "bce")


class TrainConfig(Section):
    """Training of the network (stage `train`)."""

    procedure: str = "auto"
    """Training procedure: transformers4rec (next-item prediction with its Trainer over the Merlin dataloader),
    transformers (the same by transformers' own Trainer, without Merlin), auto (transformers4rec if it is installed), or
    your own `module:function`."""
    pretrain: Literal["reversed", "attributes", "plain", "texts", "interests"] | None = None
    """Training before it, for train.epochs too, from whose weights it goes on: reversed (ASReP: on reversed sequences;
    the result writes the items that prior_items of the network puts before short histories); attributes (S3-Rec:
    masked items, segments and attributes, read both ways); plain (MELT: without enhance_users and enhance_items, to its
    best epoch); texts (SAID: the item table from which language_model writes the items' texts); interests (TSLRec: the
    item table of language_model after it has learned to tell users' interests, the clusters of align_to's items). An
    update does without it."""
    language_model: str = "gemma3-270m"
    """Causal language model of pretrain=texts and interests, as embed.model names them."""
    language_steps: int = Field(4000, ge=1)
    """Training steps of language_model."""
    language_batch: int = Field(16, ge=1)
    """Items (pretrain=texts) or users (interests) per such step."""
    attributes: tuple[str, ...] = ("categories", "brand")
    """Columns of the items, texts or lists of texts, whose values pretrain=attributes and copies predict."""
    samples: Literal["sequences", "prefixes"] = "sequences"
    """Samples of an epoch. sequences: each training sequence, of which every item but the first is predicted (or
    some are masked); prefixes: each prefix of each sequence, of which the last item is predicted (BSARec,
    CL4SRec); prefixes of one item only for bsarec, which has a state without a history; for caser, prefixes with a
    whole window and its targets, or the whole of a shorter sequence."""
    targets: int = Field(1, ge=1)
    """Latest items of a prefix that are predicted, each from the state before all of them (Caser); more than 1 needs
    bsarec or caser."""
    loss: str = "uniform_softmax"
    """uniform_softmax; sampled_softmax (each uniform negative stands for its share of the catalogue: an estimate of
    full_softmax at a fraction of its cost); full_softmax; bce; in_batch (the other targets of the batch as negatives,
    corrected by the log of how often each is drawn); or your own `module:function`."""
    negatives: int = Field(1024, ge=1)
    """Number of uniform negatives shared by a batch (uniform_softmax, sampled_softmax)."""
    bce_negatives: int = Field(1, ge=1)
    """Number of uniform negatives per target, whose losses are averaged (bce)."""
    mask: float = Field(0.3, gt=0, lt=1)
    """Share of the items that bert4rec and emkd mask in training."""
    copies: int = Field(0, ge=0)
    """Masked copies of each sequence by which the encoders of backbone emkd learn, each its items and attributes, and
    from each other, in place of train.loss (EMKD); 0: train.loss of their summed scores."""
    align: float = Field(0.0, ge=0)
    """Weight of the contrastive loss between the two views of the batch's items (or align_to's table)."""
    align_to: str | None = None
    """A model of pipelines/models whose trained item table the semantic view is aligned to (LLMEmb), or that
    pretrain=interests clusters; None: the other view."""
    align_temperature: float = Field(0.1, gt=0)
    """Temperature of the contrastive loss of align."""
    distil: float = Field(0.0, ge=0)
    """Weight of the self-distillation from users with similar item texts (LLM-ESR)."""
    distil_users: int = Field(10, ge=1)
    """Similar users whose mean state is the teacher."""
    contrast: float = Field(0.0, ge=0)
    """Weight of the contrastive loss between two augmented views of a history, cropped, masked or reordered
    (CL4SRec)."""
    enhance_users: float = Field(0.0, ge=0)
    """Weight of the loss by which states of long histories teach those of short ones (MELT); needs
    model.scorers.network.tail_maps."""
    enhance_items: float = Field(0.0, ge=0)
    """Weight of the loss by which rows of frequent items teach those of rare ones, which are inferred from their
    contexts at the start of every epoch (MELT); needs model.scorers.network.tail_maps."""
    infer_up_to: int = Field(0, ge=0)
    """After training, the table's rows of items with at most so many training interactions are inferred from their
    contexts, by a network that learns it on the rows of all others (CITIES); 0: no row is."""
    epochs: int = Field(16, ge=1)
    """Maximum number of epochs; training may stop earlier (patience)."""
    batch_size: int | None = Field(None, ge=1)
    """Samples per step; None: 256, fewer (at least 4) if an epoch would have less than 160 steps."""
    processes: int = Field(1, ge=1)
    """Data-parallel processes, one per GPU (on the CPU they share the cores), each with its share of a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear"] = "linear"
    """linear: warm-up over the first 5% of the steps, then linear decay to zero at the last epoch."""
    average: float = Field(0.0, ge=0)
    """Time constant, in epochs, of a moving average of the weights, which is evaluated, selected and kept instead of
    the weights themselves; 0: no averaging."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    l2: float = Field(0.0, ge=0)
    """Weight of half the squared norm of all trained weights in the loss: the weight decay of Adam."""
    patience: int = Field(5, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""
    validation_users: int = Field(10_000, ge=1)
    """Validation users sampled, evenly spread, for early stopping and score-weight calibration."""
    tail_tolerance: float = Field(0.01, ge=0, lt=1)
    """Allowed relative drop of validation NDCG@10 in the head/tail trade-off of calibration."""
    untrained_tolerance: float = Field(0.005, ge=0, lt=1)
    """Allowed relative drop of validation NDCG@10 for the rank of items that training never saw."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: mixed precision; the weights stay float32."""
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Tools that follow every training (the model, trained baselines, embed.tune): local files go to RUN/logs; MLflow
    and Weights & Biases go where their own environment variables say if these are set."""
    seed: int = 42
    """Seed of weights, shuffling, negatives and dropout."""
    device: str = "auto"
    """auto: the GPU if there is one; or cpu, cuda."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tool(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("align_to")
    @classmethod
    def _known_model(cls, name: str | None) -> str | None:
        if name is not None and name not in presets():
            raise ValueError(f"expected a model preset out of {', '.join(presets())}")
        return name

    @field_validator("loss")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_or_own(name, LOSSES)

    def identity(self) -> dict:
        """The settings that decide what is trained: not on what it runs, nor who follows it."""
        return self.model_dump(exclude={"device", "report_to"})
