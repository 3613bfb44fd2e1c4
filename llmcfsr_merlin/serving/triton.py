"""What runs inside Triton's python backend: requests to arrays, arrays to responses, counters and warm-up."""

import json
import os
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # exists only inside Triton

from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.serving import steps
from llmcfsr_merlin.serving.bundle import FOLDER
from llmcfsr_merlin.serving.request import Limits

_INPUTS = {
    steps.Encode: ("HISTORY", "TOP_K", "EXCLUDE_SEEN", "ALLOW", "DENY"),
    steps.Rank: ("CODES", "K", "BLOCK", "ALLOW_CODES", "BUNDLE"),
    steps.Decode: ("ITEM_CODES", "SCORES", "K", "RANKED"),
}
_INPUTS[steps.Recommend] = _INPUTS[steps.Encode]


class StepModel:
    """Base of every template's TritonPythonModel; a template only names its step."""

    step: type

    def initialize(self, args: dict) -> None:
        """Verify and load the bundle of this version, then answer one request so that the first user does not wait."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        directory = Path(args["model_repository"]) / args["model_version"] / FOLDER
        device = "cpu" if args["model_instance_kind"] == "CPU" else f"cuda:{args['model_instance_device_id']}"
        self._outputs = [output["name"] for output in config["output"]]
        self._inputs = _INPUTS[self.step]
        self._log = os.environ.get("LLMCFSR_LOG_REQUESTS") == "1"
        self._name = args["model_name"]
        limits = Limits(int(parameters.get("max_top_k", 100)), int(parameters.get("shortlist", 0)))
        self._run = self.step(directory, limits, device)
        self._counters = _counters(args["model_version"]) if "UNKNOWN" in self._outputs else None
        self._warm_up()

    def execute(self, requests: list) -> list:
        """Answer every request of the batch; a malformed one gets its own error (INVALID_ARGUMENT)."""
        start = time.perf_counter()
        results = self._run([self._read(request) for request in requests])
        responses = [self._respond(result) for result in results]
        if self._counters:
            self._count(results)
        if self._log:
            rows = [len(r[self._outputs[0]]) if isinstance(r, dict) else str(r) for r in results]
            seconds = time.perf_counter() - start
            pb_utils.Logger.log_info(f"{self._name} requests={len(requests)} rows={rows} ms={1000 * seconds:.2f}")
        return responses

    def finalize(self) -> None:
        self._run = None

    def _read(self, request) -> dict[str, np.ndarray]:
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
        return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}

    def _respond(self, result: steps.Result):
        if isinstance(result, InputError):
            error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, result[name]) for name in self._outputs])

    def _count(self, results: list[steps.Result]) -> None:
        good = [result for result in results if isinstance(result, dict)]
        for counter, name in zip(self._counters, ("UNKNOWN", "FALLBACK")):
            total = sum(int(result[name].sum()) for result in good)
            if total:
                counter.increment(total)
        if len(good) < len(results):
            self._counters[2].increment(len(results) - len(good))

    def _warm_up(self) -> None:
        if self.step in (steps.Encode, steps.Recommend):
            self._run([{"HISTORY": np.array([[b""]], dtype=object)}])
        if self.step is steps.Rank:
            length = self._run.recommender.ranker.max_length
            codes = np.full((1, length), 3, np.int64)
            one = np.ones((1, 1), np.int32)
            none, tag = np.array([[steps.NO_LIST]]), np.array([[self._run.tag]])
            self._run(
                [{"CODES": codes, "K": one, "BLOCK": np.zeros((1, 1), np.int64), "ALLOW_CODES": none, "BUNDLE": tag}]
            )


def _counters(version: str) -> list:
    described = {
        "llmcfsr_unknown_ids": "Ids of histories that the model does not know",
        "llmcfsr_fallbacks": "Histories answered by popularity",
        "llmcfsr_rejected_requests": "Malformed requests",
    }
    families = [
        pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
        for name, text in described.items()
    ]
    # A Metric keeps no reference to its family, and Triton frees a family that nobody holds.
    _FAMILIES.extend(families)
    return [family.Metric(labels={"version": version}) for family in families]


_FAMILIES: list = []
