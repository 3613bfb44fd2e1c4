"""Step `Rank`: the code is llmcfsr_merlin.serving.steps, the data stands in bundle/ beside this file."""

from llmcfsr_merlin.serving.steps import Rank
from llmcfsr_merlin.serving.backend import StepModel


class TritonPythonModel(StepModel):
    step = Rank
