"""All settings with their defaults, one section per stage, each in its `*_settings.py`; load.py reads recipes."""

from pydantic import Field

from llmcfsr_merlin.config.cluster_settings import ClusterConfig
from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.config.embed_settings import EmbedConfig
from llmcfsr_merlin.config.evaluate_settings import EvaluateConfig
from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.config.layers import apply, preset
from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.config.section import NAME, Section
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.config.update_settings import UpdateConfig

DEFAULT = "llm_cfsr"  # the model of a recipe that does not name one


class Schema(Section):
    """The whole tree of settings."""

    name: str = Field("run", pattern=NAME, max_length=100)
    """Name of the recipe, and of the default run directory, runs/<name>."""
    data: DataConfig = DataConfig()
    cluster: ClusterConfig = ClusterConfig()
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate(apply({}, preset(DEFAULT))["model"]))
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    gateway: GatewayConfig = GatewayConfig()
    update: UpdateConfig = UpdateConfig()
