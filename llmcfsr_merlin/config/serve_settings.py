"""Section `serve`: the Triton model repository (stage `export`)."""

from typing import Literal

from pydantic import Field, model_validator

from llmcfsr_merlin.config.section import Section


class ServeConfig(Section):
    """The Triton model repository (stage `export`)."""

    layout: Literal["ensemble", "merged"] = "ensemble"
    """ensemble: one Triton model per step, with reasons; merged: one python model, the fastest, one atomic version."""
    format: Literal["python", "torchscript", "onnx"] = "python"
    """Format of the step `rank`: python (torch, python backend), or a graph for the pytorch or onnxruntime backend."""
    engine: Literal["torch", "onnxruntime"] = "onnxruntime"
    """What computes the network and the products with the catalogue in format=python on a CPU. A GPU runs torch."""
    tensorrt: bool = False
    """Run the graph with TensorRT in the onnxruntime backend; needs format=onnx and device=gpu."""
    max_top_k: int = Field(100, ge=1)
    """Largest number of recommendations that a request may ask for."""
    shortlist: int = Field(0, ge=0)
    """Most items that are scored for a history, chosen by bounds; the answer says whether they are proven to hold the
    best of all (EXACT). 0: score every item. 1000 is good from 20,000 items on; on a GPU every item is scored."""
    on_uncertain: Literal["answer", "exact"] = "answer"
    """What is done if `shortlist` proves nothing. answer: the best found, EXACT false; exact: score every item."""
    max_batch_size: int = Field(64, ge=1)
    """Most histories per request, and per batch that Triton forms from several."""
    max_queue_delay_us: int = Field(500, ge=0)
    """Microseconds that a request may wait for others to share its batch."""
    device: Literal["cpu", "gpu", "auto"] = "cpu"
    """Device of the model. gpu: `instances` on every GPU; auto: on a GPU if the server has one, else on the CPU."""
    instances: int = Field(1, ge=1)
    """Instances of the step `rank` that Triton runs in parallel."""

    @model_validator(mode="after")
    def _consistent(self) -> "ServeConfig":
        if self.format != "python" and self.layout != "ensemble":
            raise ValueError(f"format={self.format} needs layout=ensemble: merged is one python model")
        if self.shortlist and self.format != "python":
            raise ValueError(f"shortlist needs format=python, found {self.format}: a graph scores every item")
        if self.on_uncertain != "answer" and not self.shortlist:
            raise ValueError("on_uncertain needs a shortlist: without one every item is scored")
        if self.tensorrt and (self.format, self.device) != ("onnx", "gpu"):
            raise ValueError("tensorrt needs format=onnx and device=gpu")
        return self
