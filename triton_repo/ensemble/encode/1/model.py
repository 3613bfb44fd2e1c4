"""Step `Encode`: the code is llmcfsr_merlin.serving.steps, the data stands in bundle/ beside this file."""

from llmcfsr_merlin.serving.backend import StepModel
from llmcfsr_merlin.serving.steps import Encode


class TritonPythonModel(StepModel):
    step = Encode
