"""Every setting with its default, a section a stage; load.py reads them from recipes.

Frozen; unknown keys, wrong types and values out of range are refused.
"""

import codecs
import difflib
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from llmcfsr_merlin.config.explain import explain
from llmcfsr_merlin.runtime.extensions import load_class
from llmcfsr_merlin.runtime.layout import resource

_MARKS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " ", "\\x01": "\x01"}
# One component of a path: no separator, and something beside dots.
NAME = r"^[\w.-]*[\w-][\w.-]*$"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


NULL_VALUES = ("NULL", "Null", "null", "(null)", "<null>", "None", "NaN", "nan", "NAN", "NaT", "<NA>", "N/A", "n/a",
               "#N/A", "\\N", "undefined")  # fmt: skip


def _delimiter(value: object) -> object:
    """A delimiter by its name: some cannot be typed in a shell or in YAML."""
    value = _MARKS.get(value, value) if isinstance(value, str) else value
    if isinstance(value, str) and set(value) & {'"', "\n", "\r", "\\"}:
        raise ValueError(f"expected a delimiter without quotes, backslashes and line ends, found {value!r}")
    return value


def _encoding(value: str) -> str:
    try:
        known = codecs.lookup(value)
        "".encode(value)  # LookupError for a codec that is no text encoding, such as base64
    except LookupError:
        raise ValueError(f"expected an encoding such as utf-8, latin-1, cp1252 or utf-16, found {value!r}") from None
    return known.name


Delimiter = Annotated[str, BeforeValidator(_delimiter), Field(min_length=1, max_length=8)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Quoting = Literal["auto", "double", "backslash", "none"]


class TableColumns(Section):
    """Columns of a generic CSV, Parquet or JSON-lines log: names, or positions from 0."""

    user: str | int = "user_id"
    item: str | int = "item_id"
    time: str | int | None = "timestamp"
    """Numbers or dates (data.time_unit, data.time_format); None: rows are taken in file order."""
    order: str | int | None = "order"
    """Position in the user's order, used where the log has no time column."""
    rating: str | int | None = "rating"
    names: tuple[str, ...] = ()
    """All columns in order, for CSV, TSV or space-separated files without a header line."""


class ItemColumns(Section):
    """Columns of a generic table of item metadata; those that are not the id are attributes of their own name."""

    item: str | int | None = None
    """The item id, a name or a position from 0; None: as in data.columns."""
    names: tuple[str, ...] = ()
    """All columns in order, for files without a header line."""


FORMATS = ("table", "amazon", "yelp", "synthetic")


class DataConfig(Section):
    """Where the logs are and how they are read (stage `ingest`)."""

    format: str = "table"
    """table (any table of user, item, time), amazon, yelp, synthetic (generated), or `module:function` of your own."""
    interactions: tuple[str, ...] = ()
    """Files or glob patterns of reviews or interactions, .gz or plain."""
    items: tuple[str, ...] = ()
    """Files or glob patterns of item metadata; empty: items have ids only."""
    columns: TableColumns = TableColumns()
    item_columns: ItemColumns = ItemColumns()
    delimiter: Delimiter | None = None
    """Between the columns of delimited interactions: a text such as "::", or comma, semicolon, tab, pipe, space; None:
    found from the first lines."""
    quoting: Quoting = "auto"
    """Fields in double quotes. double: "" inside is a quote; backslash: \\" inside is one; none: quotes are characters
    like others; auto: double, but in tab-separated files only where a field needs its quotes."""
    encoding: Encoding | None = None
    """Of text files, e.g. latin-1. None: UTF-8, or UTF-16 that says so; other bytes in an id are refused. utf-8: rows
    with other bytes are dropped and counted."""
    header: bool | None = None
    """Whether the first line of delimited files names the columns; None: found from it."""
    item_delimiter: Delimiter | None = None
    """As delimiter, of the item metadata; so the next three."""
    item_quoting: Quoting = "auto"
    item_encoding: Encoding | None = None
    item_header: bool | None = None
    max_dropped: float = Field(0.5, ge=0, le=1)
    """Share of the rows that may be dropped because they cannot be read (filters do not count): more is refused."""
    time_unit: Literal["s", "ms", "us", "ns", "days", "excel_days"] | None = None
    """Of times that are numbers: seconds (also milli-, micro- and nanoseconds) or days since 1970, or Excel's serial
    days; None: seconds and their parts by each number's size, and dates such as 20180920 and 20180920123456."""
    time_format: str | None = Field(None, pattern="%")
    """How times are written, in strptime's letters, e.g. "%d/%m/%Y %H:%M"; None: numbers, ISO dates and other common
    notations. Dates of which day and month cannot be told apart are refused."""
    null_values: tuple[str, ...] = NULL_VALUES
    """Texts that mean that there is no value, as databases and pandas write it, for users, items, times and ratings.
    "NA" and "none" are none of them: they are names too."""
    start: date | None = None
    """First day kept (YYYY-MM-DD, UTC), None: all."""
    end: date | None = None
    """Last day kept (YYYY-MM-DD, UTC), None: all."""
    min_rating: float | None = None
    """Interactions rated below are dropped; None keeps all, as the papers do (implicit feedback)."""
    damaged: Literal["error", "keep"] = "error"
    """A truncated gzip: stop, or keep the rows before the damage."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Repeated rows of one (user, item, time): repeat purchases are kept by the papers."""
    synthetic_users: int = Field(2000, ge=1)
    synthetic_items: int = Field(1000, ge=20)
    synthetic_seed: int = 0

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        return _named(name, FORMATS)

    @field_validator("interactions", "items", "null_values", mode="before")
    @classmethod
    def _one_path(cls, value):
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self):
        if self.time_unit and self.time_format:
            raise ValueError(f"expected time_unit or time_format, found both ({self.time_unit}, {self.time_format})")
        if self.start and self.end and self.start > self.end:
            raise ValueError(f"start ({self.start}) must not be after end ({self.end})")
        return self


class ClusterConfig(Section):
    """The dask engine of prepare. Unset values are chosen from the machine and printed. ingest takes `workers` only."""

    kind: Literal["auto", "single", "local", "cuda"] = "auto"
    """auto: cuda where cudf, cupy and a GPU are there, else single (in-process); local: a dask LocalCluster."""
    scheduler: str | None = None
    """Address of an existing dask scheduler to join, e.g. tcp://10.0.0.1:8786."""
    workers: int | None = Field(None, ge=1)
    """Processes or threads; with kind cuda, GPUs: one is used by this process, several by a LocalCUDACluster."""
    memory_limit: str | None = None
    """Per worker, e.g. "4GB"."""
    partition_size: str | None = None
    """Target size of a partition, e.g. "128MB"."""
    rmm_pool_size: str | None = None
    """Several GPUs: device memory taken at the start, e.g. "20GB"; unset: half of what is free."""
    device_memory_limit: str | None = None
    """Several GPUs: device memory of a worker from which it spills to the host; unset: 80% of what is free."""
    spill: bool = True
    """Several GPUs: whether workers spill to the host at all."""


class PrepareConfig(Section):
    """Filters, ids, sequences and splits (stage `prepare`)."""

    filter: Literal["k_core", "one_pass", "none"] = "k_core"
    """k_core: to a fixed point; one_pass: the papers' single pass on raw counts; none: keep all."""
    min_user: int = Field(3, ge=1)
    """Fewest interactions of a user that is kept."""
    min_item: int = Field(3, ge=1)
    """Fewest interactions of an item that is kept."""
    min_sequence: int = Field(3, ge=3)
    """Shorter sequences are dropped after filtering: leave-one-out needs train, valid and test."""
    max_length: int = Field(50, ge=1)
    """Longest history that the model reads; older items are cut."""
    extend: str | None = None
    """Directory `prepare` of an earlier run to continue: its item codes stay, this run's log is a later day's."""


class TuneConfig(Section):
    """Contrastive fine-tuning of the language model on two augmented copies of each item (inside stage `embed`)."""

    enabled: bool = False
    method: Literal["full", "lora"] = "full"
    """full: all weights, for small encoders; lora: low-rank adapters (peft), for causal LMs and large encoders."""
    drop: float = Field(0.4, ge=0, lt=1)
    """Share r of the attributes that each copy loses; at least one is kept."""
    temperature: float = Field(0.05, gt=0)
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(128, ge=2)
    """Items a contrastive batch, over all processes: every other item of the batch is a negative."""
    micro_batch: int = Field(64, ge=1)
    """Texts that one process holds activations of; a larger contrastive batch goes through by gradient caching."""
    accumulation: int = Field(1, ge=1)
    """Batches a step of the optimizer."""
    learning_rate: float = Field(2e-5, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it falls linearly to zero afterwards."""
    weight_decay: float = Field(0.01, ge=0)
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    cooccurrence: float = Field(0.0, ge=0, le=1)
    """Share of the pairs whose second copy is of an item next to the first one in a training sequence."""
    max_items: int = Field(200_000, ge=10)
    """Items used for tuning, evenly spread over a larger table."""
    holdout: float = Field(0.05, gt=0, lt=0.5)
    """Share of these items (at most 1000) that is never trained on: attribute retrieval on it decides when to stop."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between two evaluations, each followed by a checkpoint."""
    patience: int = Field(5, ge=1)
    """Evaluations without a better attribute retrieval before tuning stops."""
    seed: int = 42


class EnrichConfig(Section):
    """Attributes that a language model writes for sparse items before they are embedded (off by default)."""

    enabled: bool = False
    model: str = ""
    """Hugging Face name or folder of a causal language model (safetensors only)."""
    revision: str | None = None
    fewer_than: int = Field(3, ge=1)
    """Items with fewer attributes are enriched."""
    max_new_tokens: int = Field(48, ge=1)
    batch_size: int = Field(16, ge=1)


class EmbedConfig(Section):
    """Semantic vectors of the items (stage `embed`)."""

    model: str = "minilm"
    """minilm: the embedded all-MiniLM-L6-v2; else a Hugging Face name or a local folder (safetensors only)."""
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
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    """8bit and 4bit need bitsandbytes and a CUDA GPU."""
    batch_size: int = Field(64, ge=1)
    """Texts a batch on a CPU."""
    batch_tokens: int = Field(65_536, ge=1)
    """Tokens a batch on a GPU, padding included; it is halved where memory does not hold it."""
    device: str = "auto"
    workers: int = Field(1, ge=1)
    """Processes that encode shards side by side; on CUDA worker w uses GPU w."""
    reduction: Literal["none", "pca", "whiten", "standardise"] = "none"
    dimension: int | None = Field(None, ge=2)
    """Dimension after pca or whiten; None keeps the model's."""
    lexical: int = Field(128, ge=0)
    """Dimensions of the lexical vectors (word vectors trained on the prompts) beside the model's; 0: none."""
    tune: TuneConfig = TuneConfig()
    enrich: EnrichConfig = EnrichConfig()

    @model_validator(mode="after")
    def _consistent(self):
        if self.dimension and self.reduction not in ("pca", "whiten"):
            raise ValueError(f"dimension ({self.dimension}) needs reduction pca or whiten, found {self.reduction}")
        if self.enrich.enabled and not self.enrich.model:
            raise ValueError("enrich.enabled needs enrich.model, a causal language model's name or folder")
        if self.tune.enabled and self.tune.method == "full" and self.quantisation != "none":
            raise ValueError(f"quantisation {self.quantisation} can only be tuned with tune.method=lora")
        return self


class NetworkSettings(Section):
    """The scorer `network`: SASRec, BERT4Rec or GRU4Rec as they stand; each further view and level is a setting."""

    backbone: str = "sasrec"
    """sasrec: causal attention, next-item training; bert4rec: attention both ways, masked training; gru4rec: GRU; or
    `module:Class` of a block of your own."""
    views: tuple[Literal["collaborative", "semantic", "null_space"], ...] = ("collaborative",)
    """null_space (alone): whitened leading directions of the vectors, frozen, beside trainable ones (AlphaFuse)."""
    hidden: int = Field(64, ge=4)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    cross_attention: Literal["residual", "replace"] = "residual"
    """residual: a view adds what it reads of the other one; replace: it becomes that (LLM-ESR)."""
    fuse_embedding: bool = False
    """Cross-attention between the views before the encoder."""
    fuse_sequence: bool = False
    """Cross-attention between the views between the encoder's blocks."""
    fuse_prediction: bool = False
    """Cross-attention between the views of the user state and of each candidate."""
    pca_init: bool = False
    """Start the collaborative table from the PCA of the semantic vectors."""
    whiten: bool = False
    """Whiten the vectors before the adapter."""
    cold_shrinkage: float | None = Field(None, ge=0)
    """k in the weight n / (n + k) of a candidate's collaborative part; 0: only unseen items lose it; None: off."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of items whose collaborative row is dropped at a training step."""

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        return _named(name, BACKBONES)

    @model_validator(mode="after")
    def _consistent(self):
        if self.views not in (("collaborative",), ("semantic",), ("null_space",), ("collaborative", "semantic")):
            raise ValueError(
                "views must be [collaborative, semantic], or one of collaborative, semantic, null_space, "
                f"found {list(self.views)}"
            )
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """Which item vectors of stage embed it reads."""
        return ("semantic",) if self.views != ("collaborative",) or self.pca_init else ()


class ContentSettings(Section):
    """The scorer `content`: the largest cosine between a candidate's vector and those of the history."""

    lexical_share: float = Field(0.3, ge=0, le=1)
    """Share of the lexical vectors in the cosine, if stage embed made any."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("semantic", "lexical") if self.lexical_share else ("semantic",)


class TransitionSettings(Section):
    """The scorer `transitions`: which items follow which in the training sequences."""

    neighbours: int = Field(100, ge=1)
    """Items kept per item, those with the largest weight."""


class PopularitySettings(Section):
    """The scorer `popularity`: training interactions per item."""


class ItemKNNSettings(Section):
    """The scorer `item_knn`; the defaults were chosen on the validation items of amazon_beauty."""

    neighbours: int = Field(300, ge=1)
    shrinkage: float = Field(10.0, ge=0)


class EASESettings(Section):
    """The scorer `ease`; the default was chosen on the validation items of amazon_beauty."""

    regularisation: float = Field(500.0, gt=0)
    """Ridge weight (lambda)."""
    memory_gb: float = Field(6.0, gt=0)
    """It needs 8 * (items + 3)^2 bytes; a larger catalogue is refused."""


SCORERS: dict[str, type[Section]] = {
    "network": NetworkSettings,
    "content": ContentSettings,
    "transitions": TransitionSettings,
    "popularity": PopularitySettings,
    "item_knn": ItemKNNSettings,
    "ease": EASESettings,
}


class ModelConfig(Section):
    """A model: a name, and the scorers whose weighted sum is the score. What is not named is not there."""

    name: str = Field("sasrec", pattern=NAME, max_length=100)
    """What the result tables call it; the presets that ship are in pipelines/models."""
    scorers: dict[str, Any] = Field(default_factory=lambda: {"network": {}}, validate_default=True)
    """Scorer -> its settings, in order: the first one has weight 1, the weights of the others are calibrated on
    validation. A scorer of your own is named `module:Class`; `null` removes one that a preset has."""

    @field_validator("scorers")
    @classmethod
    def _known(cls, scorers: dict[str, Any]) -> dict[str, Section]:
        found = {name: _scorer_settings(name, value) for name, value in scorers.items() if value is not None}
        if not found:
            raise ValueError(f"expected at least one scorer out of {', '.join(SCORERS)} or module:Class, found none")
        return found

    @property
    def extensions(self) -> tuple[str, ...]:
        """What it names from outside this package, `module:Class`."""
        backbone = (self.network.backbone,) if self.network else ()
        return tuple(name for name in (*self.scorers, *backbone) if ":" in name)

    @property
    def network(self) -> NetworkSettings | None:
        """Settings of the scorer `network`; None if the model has no trained network."""
        return self.scorers.get("network")

    @property
    def reads(self) -> tuple[str, ...]:
        """Which item vectors of stage embed its scorers read: semantic, lexical."""
        return tuple(dict.fromkeys(name for one in self.scorers.values() for name in getattr(one, "reads", ())))


def _named(name: str, known: tuple[str, ...]) -> str:
    if name not in known and ":" not in name:
        raise ValueError(f"expected {', '.join(known)} or module:Name")
    return name


def _scorer_settings(name: str, value) -> Section:
    if isinstance(value, Section):
        return value
    if name in SCORERS or ":" in name:
        kind = SCORERS[name] if name in SCORERS else load_class(name).Settings
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise ValueError(explain(error, kind, f"{name}.")) from error
    close = difflib.get_close_matches(name, SCORERS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(SCORERS)}, or module:Class"
    raise ValueError(f"unknown scorer {name} ({hint})")


BACKBONES = ("sasrec", "bert4rec", "gru4rec")
LOSSES = ("uniform_softmax", "full_softmax", "in_batch", "bce")


class TrainConfig(Section):
    """Training by Transformers4Rec's Trainer (stage `train`)."""

    procedure: str = "transformers4rec"
    """How the network is trained: transformers4rec (next items by its Trainer), or `module:function` of your own."""
    loss: str = "uniform_softmax"
    """uniform_softmax, full_softmax, bce, in_batch (the other targets of the batch as negatives, corrected by the log
    of how often each is drawn), or `module:function` of your own."""
    negatives: int = Field(1024, ge=1)
    """Uniform negatives shared by a batch (uniform_softmax)."""
    mask: float = Field(0.3, gt=0, lt=1)
    """Share of the items that bert4rec masks in training."""
    align: float = Field(0.0, ge=0)
    """Weight of the contrastive loss between the two views of the batch's items (or align_to's table)."""
    align_to: str | None = None
    """A model of pipelines/models whose trained item table the semantic view is aligned to (LLMEmb); None: the other
    view."""
    align_temperature: float = Field(0.1, gt=0)
    distil: float = Field(0.0, ge=0)
    """Weight of the self-distillation from users with similar text (LLM-ESR)."""
    distil_users: int = Field(10, ge=1)
    """Similar users whose mean state is the teacher."""
    epochs: int = Field(16, ge=1)
    batch_size: int | None = Field(None, ge=1)
    """Sequences a step; None: 256, fewer (at least 16) where that would leave an epoch less than 64 steps."""
    processes: int = Field(1, ge=1)
    """Processes that train together, one a GPU (on the CPU they share the cores) and each on its share of a step."""
    learning_rate: float = Field(2e-3, gt=0)
    schedule: Literal["constant", "linear"] = "linear"
    """linear: the learning rate rises over the first twentieth of the steps and falls to zero at the last epoch."""
    weight_decay: float = Field(0.0, ge=0)
    patience: int = Field(5, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""
    validation_users: int = Field(10_000, ge=1)
    """Validation users, evenly spread, sampled for early stopping and score-weight calibration."""
    tail_tolerance: float = Field(0.01, ge=0, lt=1)
    """Allowed relative drop of validation NDCG@10 in the head/tail trade-off of calibration."""
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 42
    device: str = "auto"

    @field_validator("align_to")
    @classmethod
    def _known_model(cls, name: str | None) -> str | None:
        if name is not None and name not in presets():
            raise ValueError(f"expected a model out of {', '.join(presets())}")
        return name

    @field_validator("loss")
    @classmethod
    def _known(cls, name: str) -> str:
        return _named(name, LOSSES)


def presets() -> list[str]:
    """Names of the model presets that ship with the project: LLM-CFSR and its baselines."""
    return sorted(path.stem for path in (resource("pipelines") / "models").glob("*.yaml"))


class EvaluateConfig(Section):
    """Ranking quality on the test items (stage `evaluate`)."""

    ks: tuple[int, ...] = (5, 10, 20)
    protocols: tuple[Literal["full", "sampled"], ...] = ("full", "sampled")
    sampled_negatives: int = Field(100, ge=1)
    exclude_history: bool = False
    """Full protocol: leave the user's history (but never the target) out of the ranking."""
    tail_item: int = Field(4, ge=1)
    """An item with fewer interactions is a tail item (papers: Yelp 13, Fashion 4, Beauty 4)."""
    tail_user: int = Field(9, ge=1)
    """A user with a shorter history is a tail user (papers: Yelp 12, Fashion 3, Beauty 9)."""
    popularity_from: Literal["train", "all"] = "train"
    """Counts that decide on tail items; the papers' code counts the users of all interactions, test included."""
    baselines: tuple[str, ...] = ("popularity", "sasrec")
    """Model presets of pipelines/models that are measured beside the model."""
    batch_size: int = Field(256, ge=1)
    seed: int = 42

    @field_validator("baselines")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in presets():
                raise ValueError(f"expected baselines out of {', '.join(presets())}, found {name}")
        return names


class ServeConfig(Section):
    """The Triton model repository (stage `export`)."""

    layout: Literal["ensemble", "merged"] = "ensemble"
    """ensemble: one Triton model a step; merged: one python model, lowest latency, one atomic version."""
    format: Literal["python", "torchscript", "onnx"] = "python"
    """Of the ensemble's model: python (torch, python backend), or a graph for the pytorch or onnxruntime backend."""
    tensorrt: bool = False
    """Let the onnxruntime backend run the graph by TensorRT; needs format=onnx and device=gpu."""
    max_top_k: int = Field(100, ge=1)
    shortlist: int = Field(0, ge=0)
    """Items scored exactly, found by the content match of 64 dimensions; 0: all. For hundreds of thousands of items."""
    max_batch_size: int = Field(64, ge=1)
    max_queue_delay_us: int = Field(500, ge=0)
    device: Literal["cpu", "gpu", "auto"] = "cpu"
    """Of the model. gpu: `instances` on every GPU; auto: on a GPU where the server has one, else on the CPU."""
    instances: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _consistent(self):
        if self.format != "python" and self.layout != "ensemble":
            raise ValueError(f"format={self.format} needs layout=ensemble: merged is one python model")
        if self.shortlist and self.format != "python":
            raise ValueError(f"shortlist needs format=python, found {self.format}: a graph scores every item")
        if self.tensorrt and (self.format, self.device) != ("onnx", "gpu"):
            raise ValueError("tensorrt needs format=onnx and device=gpu")
        return self
