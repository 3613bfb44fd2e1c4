"""Step `Recommend`: the code is llmcfsr_merlin.serving.steps, the data stands in bundle/ beside this file."""

from llmcfsr_merlin.serving.backend import JoiningModel
from llmcfsr_merlin.serving.steps import Recommend


class TritonPythonModel(JoiningModel):
    step = Recommend
