"""The served steps trust none of their inputs, and an error stays with its request."""

import json
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.bundle import FOLDER, Bundle
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import Decode, Encode, Rank, Recommend
from llmcfsr_merlin.serving.wire import FOLDER_VARIABLE, REQUEST_VARIABLE, STOPPING, Unreadable
from tests.served import ITEMS, write_model

HISTORY = {"HISTORY": np.array([[b"B001", b"B002"]], dtype=object)}
LIMITS = Limits(max_top_k=50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def steps(trained):
    return Encode(trained, LIMITS), Rank(trained, LIMITS), Decode(trained, LIMITS)


def array(*values, dtype=np.int64) -> np.ndarray:
    return np.array([values], dtype)


CODES = array(3, 4, *[0] * 10)
WILD_RANK = {
    "code above the catalogue": ("CODES", array(3, ITEMS + 3, *[0] * 10)),
    "code below": ("CODES", array(-1, *[0] * 11)),
    "reserved code": ("CODES", array(2, *[0] * 11)),
    "huge code": ("CODES", array(2**62, *[0] * 11)),
    "padding in front": ("CODES", array(0, 3, *[0] * 10)),
    "padding between": ("CODES", array(3, 0, 3, *[0] * 9)),
    "too long": ("CODES", np.full((1, 500), 3)),
    "other rows": ("CODES", np.full((2, 12), 3)),
    "K zero": ("K", array(0, dtype=np.int32)),
    "K negative": ("K", array(-7, dtype=np.int32)),
    "K of two billion": ("K", array(2**31 - 1, dtype=np.int32)),
    "K of two columns": ("K", array(1, 2, dtype=np.int32)),
    "blocked code above": ("BLOCK", array(ITEMS + 3)),
    "blocked code below": ("BLOCK", array(-1)),
    "blocked nothing": ("BLOCK", np.zeros((1, 0), np.int64)),
    "allowed code above": ("ALLOW_CODES", array(3, 10**12)),
    "allowed no list in the middle": ("ALLOW_CODES", array(3, -1)),
    "another bundle": ("BUNDLE", array(12)),
    "no bundle": ("BUNDLE", None),
}


@pytest.mark.parametrize("name", WILD_RANK)
def test_rank_refuses_a_wild_field_alone(steps, name):
    encode, rank, _ = steps
    field, value = WILD_RANK[name]
    (good,) = encode([HISTORY])
    wild = {key: tensor for key, tensor in {**good, field: value}.items() if tensor is not None}
    answers = rank([good, wild, good])
    message = str(answers[1])
    assert isinstance(answers[1], InputError) and (
        field in message or "rows as in CODES" in message or "bundle" in message
    )
    assert (answers[0]["ITEM_CODES"] == rank([good])[0]["ITEM_CODES"]).all()
    assert (answers[0]["ITEM_CODES"] == answers[2]["ITEM_CODES"]).all()


WILD_DECODE = {
    "item above": ("ITEM_CODES", array(3, ITEMS + 3)),
    "item below": ("ITEM_CODES", array(-5, 3)),
    "fewer scores": ("SCORES", array(1.0, dtype=np.float32)),
    "K zero": ("K", array(0, dtype=np.int32)),
    "K of two billion": ("K", array(2**31 - 1, dtype=np.int32)),
    "no K": ("K", None),
    "another bundle": ("RANKED", array(-1)),
}


@pytest.mark.parametrize("name", WILD_DECODE)
def test_decode_refuses_a_wild_field_alone(steps, trained, name):
    field, value = WILD_DECODE[name]
    tag = np.array([[Bundle.open(trained).tag]])
    good = {
        "ITEM_CODES": array(3, 4),
        "SCORES": array(2.0, 1.0, dtype=np.float32),
        "K": array(2, dtype=np.int32),
        "RANKED": tag,
    }
    wild = {key: tensor for key, tensor in {**good, field: value}.items() if tensor is not None}
    answers = steps[2]([good, wild, good])
    assert isinstance(answers[1], InputError) and (field in str(answers[1]) or "bundle" in str(answers[1]))
    assert answers[0]["ITEMS"].tolist() == answers[2]["ITEMS"].tolist() == [[b"B000", b"B001"]]


class Request:
    def __init__(self, tensors: dict, request_id: str = ""):
        self.tensors, self._id = tensors, request_id
        self.sent: list = []

    def request_id(self) -> str:
        return self._id

    def requested_output_names(self) -> list[str]:
        return ["CODES"]

    def get_response_sender(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(send=lambda response, flags: self.sent.append((response, flags)))


@pytest.fixture
def triton(monkeypatch):
    """serving.triton over a stand-in for the module that exists only inside Triton."""
    error = type("TritonError", (Exception,), {"INVALID_ARG": 1, "UNAVAILABLE": 2, "INTERNAL": 3})
    error.__init__ = lambda self, message, code: Exception.__init__(self, message, code)
    module = types.SimpleNamespace(
        TritonError=error,
        InferenceResponse=lambda tensors=(), error=None: error or dict(tensors),
        Tensor=lambda name, value: (name, value),
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
        deserialize_bytes_tensor=lambda encoded: encoded,
        Logger=types.SimpleNamespace(log_error=lambda text: None, log_info=lambda text: None),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.delitem(sys.modules, "llmcfsr_merlin.serving.backend", raising=False)
    import llmcfsr_merlin.serving.backend as found

    yield found
    sys.modules.pop("llmcfsr_merlin.serving.backend", None)


def model(triton, trained, tmp_path, monkeypatch, base=None, most: int = 0):
    repository = tmp_path / "encode"
    Bundle.open(trained).copy(repository / "1" / FOLDER, "encode")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(REQUEST_VARIABLE, "own")
    made = type("Model", (base or triton.StepModel,), {"step": Encode})()
    parameters = {"max_top_k": {"string_value": "50"}}
    config = {"output": [{"name": "CODES"}], "parameters": parameters, "max_batch_size": most}
    made.initialize(
        {"model_config": json.dumps(config), "model_repository": str(repository), "model_version": "1",
         "model_name": "encode", "model_instance_kind": "CPU"}
    )  # fmt: skip
    return made


@pytest.mark.parametrize(
    "kind, parameter, wanted",
    [("GPU", "gpu", "cuda:1"), ("CPU", "auto", "auto"), ("CPU", "cpu", "cpu"), ("CPU", None, "cpu")],
)
def test_the_device_of_a_step(triton, kind, parameter, wanted, tmp_path):
    given = []
    step = lambda directory, limits, device: given.append(device)  # noqa: E731
    made = type("Model", (triton.StepModel,), {"step": staticmethod(step)})()
    triton._INPUTS[step] = ()
    parameters = {} if parameter is None else {"device": {"string_value": parameter}}
    made.initialize(
        {"model_config": json.dumps({"output": [], "parameters": parameters}), "model_repository": str(tmp_path),
         "model_version": "1", "model_name": "rank", "model_instance_kind": kind, "model_instance_device_id": "1"}
    )  # fmt: skip
    assert given == [wanted]


def test_a_gpu_that_torch_does_not_see_is_one_line(trained):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=r"serve.device: expected a CUDA device for 'cuda:0', found none"):
        Rank(trained, Limits(10), "cuda:0")
    assert Rank(trained, Limits(10), "auto").recommender.ranker.device.type == "cpu"


def request(value, request_id: str = "") -> Request:
    return Request({"HISTORY": types.SimpleNamespace(as_numpy=lambda: value)}, request_id)


def test_a_step_answers_around_what_is_unreadable_or_breaks_it(triton, trained, tmp_path, monkeypatch):
    step = model(triton, trained, tmp_path, monkeypatch)
    good, unreadable = HISTORY["HISTORY"], Unreadable.because("expected this, found that")
    run = step._run

    def breaks(batch: list) -> list:
        if any(b"bang" in tensors["HISTORY"] for tensors in batch):
            raise MemoryError(f"in {__file__}")
        return run(batch)

    step._run = breaks
    asked = [good, unreadable, np.array([[b"bang"]], dtype=object), good]
    answers = step.execute([request(value) for value in asked])
    assert (answers[0]["CODES"] == answers[3]["CODES"]).all()
    assert answers[1].args == ("HISTORY: expected this, found that", 1)
    assert answers[2].args[1] == 3 and "encode failed" in answers[2].args[0] and "/" not in answers[2].args[0]


def test_a_step_that_joins_requests_answers_each_by_its_own_sender(triton, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(triton.pb_utils, "TRITONSERVER_RESPONSE_COMPLETE_FINAL", 1, raising=False)
    step = model(triton, trained, tmp_path, monkeypatch, triton.JoiningModel, 8)
    sizes, run = [], step._run

    def slow(batch: list) -> list:
        sizes.append(len(batch))
        time.sleep(0.2)
        if any(b"bang" in tensors["HISTORY"] for tensors in batch):
            raise MemoryError("a batch with it")
        return run(batch)

    step._run = slow
    rows = [1, 3, 3, 2, 1, 1]
    asked = [request(np.repeat(HISTORY["HISTORY"], count, 0)) for count in rows]
    asked[4] = request(np.array([[b"bang"]], dtype=object))
    asked[5] = request(Unreadable.because("expected this, found that"))
    gone = types.SimpleNamespace(send=lambda *_, **__: 1 / 0)  # whose client has closed the connection
    left = request(HISTORY["HISTORY"])
    left.get_response_sender = lambda: gone
    assert step.execute([asked[0]]) == step.execute([left]) == [None]
    time.sleep(0.1)  # the first is being answered: the others wait, and more than 8 rows do not go together
    for one in asked[1:]:
        step.execute([one])
    step.finalize()
    assert all(len(one.sent) == 1 and one.sent[0][1] == 1 for one in asked)
    answers = [one.sent[0][0] for one in asked]
    assert [len(answer["CODES"]) for answer in answers[:4]] == rows[:4]
    assert "encode failed" in answers[4].args[0] and answers[5].args == ("HISTORY: expected this, found that", 1)
    assert set(answers[0]) == {"CODES"}  # what else the step makes nobody asked for: a sender must not drop it
    assert max(sizes) > 1
    assert not step._worker.is_alive()


def test_a_stopping_server_answers_its_own_request_alone(triton, trained, tmp_path, monkeypatch):
    step = model(triton, trained, tmp_path, monkeypatch)
    asked = [request(HISTORY["HISTORY"]), request(HISTORY["HISTORY"], "own")]
    assert all(isinstance(answer, dict) for answer in step.execute(asked))
    (tmp_path / STOPPING).touch()
    refused, own = step.execute(asked)
    assert refused.args == ("the server is stopping: use another one, or retry later", 2) and "CODES" in own


def test_encode_and_decode_need_no_torch():
    """A server that starts again waits for every step's imports."""
    code = "import sys, llmcfsr_merlin.serving.steps; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_merged_model_answers_the_others_where_one_is_refused(trained):
    merged = Recommend(trained, LIMITS)
    first, second, third = merged([{**HISTORY, "TOP_K": array(k, dtype=np.int32)} for k in (3, 0, 5)])
    assert isinstance(second, InputError) and "TOP_K" in str(second)
    assert (first["ITEMS"].shape[1], third["ITEMS"].shape[1]) == (3, 5) and "UNKNOWN" in third
    assert [type(one) for one in merged([{**HISTORY, "TOP_K": array(0, dtype=np.int32)}])] == [InputError]
