"""Step `Decode`: the code is llmcfsr_merlin.serving.steps, the data stands in bundle/ beside this file."""

from llmcfsr_merlin.serving.backend import StepModel
from llmcfsr_merlin.serving.steps import Decode


class TritonPythonModel(StepModel):
    step = Decode
