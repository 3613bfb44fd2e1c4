"""What runs inside Triton's python backend: requests to arrays, arrays to responses, counters and warm-up."""

import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils  # exists only inside Triton

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import steps
from llmcfsr_merlin.serving.bundle import FOLDER
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.wire import (
    FOLDER_VARIABLE,
    REQUEST_VARIABLE,
    SHARD_VARIABLE,
    STOPPING,
    Unreadable,
    read_shard,
    reader,
)

_INPUTS: dict[type[Any], tuple[str, ...]] = {
    steps.Encode: ("HISTORY", "TOP_K", "EXCLUDE_SEEN", "ALLOW", "DENY"),
    steps.Rank: ("CODES", "K", "BLOCK", "ALLOW_CODES", "BUNDLE"),
    steps.Decode: ("ITEM_CODES", "SCORES", "K", "RANKED", "PROVEN"),
}
_INPUTS[steps.Recommend] = (*_INPUTS[steps.Encode], steps.EXPLAIN)
_FIRST = (steps.Encode, steps.Recommend)  # the steps that receive client input
_UNLIMITED_K = 10_000  # for repositories exported before `rank` and `decode` knew max_top_k


class Failure(Exception):
    """An error that the client did not cause. code: one of pb_utils.TritonError."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Read(NamedTuple):
    """A request's tensors, or why it is refused. own: of the server itself. outputs: names that it asks for."""

    tensors: Any
    own: bool
    outputs: list[str]


class StepModel:
    """Base of every template's TritonPythonModel; a template only names its step."""

    step: type[Any]

    def initialize(self, args: dict) -> None:
        """Verify and load the bundle of this version, then run one request as warm-up."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        # `llmcfsr serve` gives Triton a link; errors name the folder itself, and the command that writes it.
        directory = Path(args["model_repository"]).resolve() / args["model_version"] / FOLDER
        if args["model_instance_kind"] == "GPU":
            device = f"cuda:{args['model_instance_device_id']}"
        else:  # with KIND_AUTO Triton chooses, and picks the CPU for the python backend
            device = "auto" if parameters.get("device") == "auto" else "cpu"
        self._outputs = [output["name"] for output in config["output"]]
        self._inputs = _INPUTS[self.step]
        self._log = os.environ.get("LLMCFSR_LOG_REQUESTS") == "1"
        self._name = args["model_name"]
        limits = Limits(
            int(parameters.get("max_top_k", _UNLIMITED_K)),
            int(parameters.get("shortlist", 0)),
            parameters.get("on_uncertain", "answer"),
            parameters.get("engine", "torch"),
            read_shard(os.environ[SHARD_VARIABLE]) if SHARD_VARIABLE in os.environ else None,
        )
        # Triton decodes BYTES tensors with this function before execute(), and crashes on its exceptions.
        pb_utils.deserialize_bytes_tensor = reader(pb_utils.deserialize_bytes_tensor)
        folder = os.environ.get(FOLDER_VARIABLE)
        self._stopping = os.path.join(folder, STOPPING) if folder and self.step in _FIRST else None
        self._own_id = os.environ.get(REQUEST_VARIABLE)
        self._run = self.step(directory, limits, device)
        self._counters = _counters(args["model_version"], self._outputs)
        self._warm_up()

    def execute(self, requests: list) -> list:
        """Answer every request of the batch; an error affects only its request (malformed: INVALID_ARGUMENT)."""
        return self._responses(self._read_all(requests))

    def _read_all(self, requests: list) -> list["Read"]:
        stopping = self._stopping is not None and os.path.exists(self._stopping)
        return [
            Read(self._read(request, stopping), self._is_own(request), request.requested_output_names())
            for request in requests
        ]

    def _responses(self, requests: list["Read"]) -> list:
        start = time.perf_counter()
        results = [request.tensors for request in requests]
        good = [i for i, result in enumerate(results) if isinstance(result, dict)]
        for i, answer in zip(good, self._answer([results[i] for i in good])):
            results[i] = answer
        responses = [self._respond(result, request.outputs) for result, request in zip(results, requests)]
        foreign = [result for result, request in zip(results, requests) if not request.own]
        if self._counters:
            self._count(foreign)
        if self._log and foreign:
            rows = [len(r[self._outputs[0]]) if isinstance(r, dict) else str(r) for r in results]
            seconds = time.perf_counter() - start
            pb_utils.Logger.log_info(f"{self._name} requests={len(requests)} rows={rows} ms={1000 * seconds:.2f}")
        return responses

    def finalize(self) -> None:
        self._run = None

    def _read(self, request: Any, stopping: bool) -> dict[str, np.ndarray] | Exception:
        if stopping and not self._is_own(request):
            return Failure("the server is stopping: use another one, or retry later", pb_utils.TritonError.UNAVAILABLE)
        found = {}
        for name in self._inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                found[name] = tensor.as_numpy()
                if isinstance(found[name], Unreadable):
                    return InputError(f"{name}: {found[name].reason}")
        # A client that names no outputs asks `recommend` for all of them, and says with EXPLAIN that it wants reasons.
        if self.step is steps.Rank and "REASONS" in request.requested_output_names():
            found[steps.EXPLAIN] = np.ones((1, 1), bool)
        return found

    def _answer(self, batch: list[dict[str, np.ndarray]]) -> list[steps.Result | Failure]:
        """The step's responses; a failing batch is retried request by request, so that only the cause fails."""
        if not batch:
            return []
        try:
            return self._run(batch)
        except Exception:
            if len(batch) > 1:
                return [self._answer([one])[0] for one in batch]
            pb_utils.Logger.log_error(f"{self._name}: {traceback.format_exc()}")
            return [self._failure()]

    def _failure(self) -> Failure:
        return Failure(f"step {self._name} failed: the server's log says why", pb_utils.TritonError.INTERNAL)

    def _is_own(self, request: Any) -> bool:
        return self._own_id is not None and request.request_id() == self._own_id

    def _respond(self, result: steps.Result | Failure, asked: Sequence[str] = ()) -> Any:
        if isinstance(result, Exception):
            code = result.code if isinstance(result, Failure) else pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), code))
        # What nobody asked for, Triton would drop itself, but a sender does that without the GIL: the process ends.
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, result[n]) for n in asked if n in result])

    def _count(self, results: list[steps.Result]) -> None:
        good = [result for result in results if isinstance(result, dict)]
        for name, counter in self._counters.items():
            if name is None:
                total = len(results) - len(good)
            else:
                total = sum(int((result[name] if name != "EXACT" else ~result[name]).sum()) for result in good)
            if total:
                counter.increment(total)

    def _warm_up(self) -> None:
        if self.step is steps.Encode:
            self._run([{"HISTORY": np.array([[b""]], dtype=object)}])
        if self.step is steps.Recommend:
            for rows in self._run.rank.warm_up_rows:
                self._run([{"HISTORY": np.full((rows, 1), b"", dtype=object)}])
        if self.step is steps.Rank:
            length = self._run.recommender.ranker.max_length
            one: dict[str, np.ndarray] = {
                "CODES": np.full((1, length), 3, np.int64),
                "K": np.ones((1, 1), np.int32),
                "BLOCK": np.zeros((1, 1), np.int64),
                "ALLOW_CODES": np.array([[steps.NO_LIST]]),
                "BUNDLE": np.array([[self._run.tag]]),
            }
            for rows in self._run.warm_up_rows:
                self._run([{name: np.repeat(value, rows, 0) for name, value in one.items()}])


class JoiningModel(StepModel):
    """Takes requests one by one and answers together those that came while the step was busy.

    In place of Triton's dynamic batching, which fails every request of a batch where the lengths inside one BYTES
    tensor lie. A request that meets an idle step waits for no other.
    """

    def initialize(self, args: dict) -> None:
        super().initialize(args)
        self._most_rows = max(json.loads(args["model_config"])["max_batch_size"], 1)
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def execute(self, requests: list) -> list:
        """None per request: the worker sends the responses."""
        for request, read in zip(requests, self._read_all(requests)):
            if isinstance(read.tensors, dict):  # copies: of what Triton frees with the request
                read = read._replace(tensors={name: tensor.copy() for name, tensor in read.tensors.items()})
            self._waiting.put((read, request.get_response_sender()))
        return [None] * len(requests)

    def finalize(self) -> None:
        self._waiting.put(None)
        self._worker.join()
        super().finalize()

    def _work(self) -> None:
        following = self._waiting.get()
        while following is not None:
            taken, following = self._together(following)
            try:
                responses = self._responses([read for read, _ in taken])
            except Exception:  # or nobody would be answered any more
                pb_utils.Logger.log_error(f"{self._name}: {traceback.format_exc()}")
                responses = [self._respond(self._failure()) for _ in taken]
            for (_, sender), response in zip(taken, responses):
                try:
                    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                except Exception:  # of a client that has gone, say: the others wait for theirs
                    pb_utils.Logger.log_error(f"{self._name}: {traceback.format_exc()}")
            del taken, responses, sender, response
            if following is _NOTHING:
                following = self._waiting.get()

    def _together(self, first: tuple[Read, Any]) -> tuple[list[tuple[Read, Any]], Any]:
        """The requests of a batch, and what comes after it: the next request, None at the end, or _NOTHING yet."""
        taken, rows = [first], _rows(first[0])
        while True:
            try:
                following = self._waiting.get_nowait()
            except queue.Empty:
                return taken, _NOTHING
            if following is None or rows + _rows(following[0]) > self._most_rows:
                return taken, following
            taken.append(following)
            rows += _rows(following[0])


_NOTHING = object()


def _rows(read: Read) -> int:
    first = next(iter(read.tensors.values()), None) if isinstance(read.tensors, dict) else None
    return len(first) if first is not None and first.ndim else 1


def _counters(version: str, outputs: list[str]) -> dict[str | None, Any]:
    """Counters of a step by what they count: an output, or None for malformed requests."""
    described = {
        "UNKNOWN": ("llmcfsr_unknown_ids", "Ids of histories that the model does not know"),
        "FALLBACK": ("llmcfsr_fallbacks", "Histories answered by popularity"),
        "EXACT": ("llmcfsr_uncertain_answers", "Answers of a shortlist that are not proven to be the best"),
        None: ("llmcfsr_rejected_requests", "Malformed requests"),
    }
    counted = {
        output: pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
        for output, (name, text) in described.items()
        if output in outputs or (output is None and "UNKNOWN" in outputs)
    }
    # A Metric keeps no reference to its family, and Triton frees unreferenced families.
    _FAMILIES.extend(counted.values())
    return {output: family.Metric(labels={"version": version}) for output, family in counted.items()}


_FAMILIES: list[Any] = []
