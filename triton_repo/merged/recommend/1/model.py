"""Step `Recommend` of the recommender: the code is llmcfsr_merlin.serving.steps.Recommend, the data stands in bundle/ beside this file."""

from llmcfsr_merlin.serving.steps import Recommend
from llmcfsr_merlin.serving.triton import StepModel


class TritonPythonModel(StepModel):
    step = Recommend
