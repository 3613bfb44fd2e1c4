"""`llmcfsr serve` among enemies: who reaches its ports may ask and do nothing else, and is no danger to other clients.

LLMCFSR_ATTACKS: seconds of each load (2). LLMCFSR_SECURITY_OUT: a file for one JSON line of figures a test.
"""

import collections
import contextlib
import http.client
import json
import random
import re
import struct
import time
from pathlib import Path

import pytest

from llmcfsr_merlin.serving.launch import find_tritonserver
from tests.attacked import GOOD, SECONDS, exported, failures, good_clients, serving
from tests.load import note

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def served(repository, tmp_path_factory):
    with serving(repository, tmp_path_factory.mktemp("log") / "stderr") as running:
        yield running


def test_the_key_is_for_its_owner_alone(served):
    key = served.key_file.read_text().split(": ")[1].strip()
    assert served.key_file.stat().st_mode & 0o777 == 0o600 and served.key_file.parent.stat().st_mode & 0o077 == 0
    for process in (served.process.pid, served.triton().pid, *(stub.pid for stub in served.stubs())):
        assert key not in Path(f"/proc/{process}/cmdline").read_text()
    name, value = served.key_file.read_text().strip().split(": ")
    assert served.post("/v2/repository/index", headers={name: value})[0] == 200


CODE = "open({marker!r}, 'w').write('ran')\nfrom llmcfsr_merlin.serving.backend import StepModel as TritonPythonModel\n"


def attack_paths() -> list[tuple[str, dict]]:
    register = {"key": "/llmcfsr", "offset": 0, "byte_size": 64}
    return [
        ("/v2/repository/models/{new}/load", {"parameters": {"config": "{}", "file:1/model.py": "CODE"}}),
        ("/v2/repository/models/recommend/load", {}),
        ("/v2/repository/models/recommend/unload", {"parameters": {"unload_dependents": True}}),
        ("/v2/repository/models/encode/unload", {}),
        ("/v2/repository/index", {}),
        ("/v2/systemsharedmemory/region/a/register", register),
        ("/v2/systemsharedmemory/status", {}),
        ("/v2/systemsharedmemory/unregister", {}),
        ("/v2/cudasharedmemory/region/a/register", {**register, "raw_handle": {"b64": ""}}),
        ("/v2/logging", {"log_file": "/tmp/x", "log_verbose_level": 4}),
        ("/v2/trace/setting", {"trace_file": "/tmp/x", "trace_level": ["TENSORS"]}),
        ("/v2/models/recommend/trace/setting", {"trace_file": "/tmp/x"}),
        ("/v2/models/recommend/stats", {}),
    ]


def test_without_the_key_nothing_is_loaded_unloaded_registered_or_set(served, tmp_path):
    import base64

    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    key, marker, tried, passed = served.key_file.read_text().split(": ")[1].strip(), tmp_path / "marker", 0, []
    code = base64.b64encode(CODE.format(marker=str(marker)).encode()).decode()
    headers = [
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain", "Origin": "http://127.0.0.1:9999"},
        {"llmcfsr-key": ""},
        {"llmcfsr-key": key[:-1]},
        {"llmcfsr-key": key.upper() + "0"},
        {"triton-grpc-protocol-llmcfsr-key": key},
        {"Authorization": key},
    ]
    for path, body in attack_paths():
        text = json.dumps(body).replace("CODE", code).encode()
        for header in headers:
            for spelled in (
                path,
                path.replace("/v2/", "//v2//"),
                path + "/",
                path.replace("repo", "%72epo"),
                path + "?a=b",
            ):
                status, reply = served.post(spelled.format(new="evil"), text, header)
                tried += 1
                if status == 200:
                    passed.append((spelled, header, reply))
        for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
            connection.request(method, path.format(new="evil"), text)
            tried += 1
            if connection.getresponse().status == 200:
                passed.append((method, path))
            connection.close()
    config = json.dumps({"backend": "python", "instance_group": [{"kind": "KIND_CPU"}]})
    with triton.InferenceServerClient(served.grpc.removeprefix("grpc://")) as client:
        files = {"file:1/model.py": CODE.format(marker=str(marker)).encode()}
        for sent in ({}, {"llmcfsr-key": key}, {"triton-grpc-protocol-llmcfsr-key": "no"}):
            for call in (
                lambda sent: client.load_model("evil", headers=sent, config=config, files=files),
                lambda sent: client.load_model("recommend", headers=sent),
                lambda sent: client.unload_model("recommend", headers=sent, unload_dependents=True),
                lambda sent: client.get_model_repository_index(headers=sent),
                lambda sent: client.register_system_shared_memory("a", "/a", 64, headers=sent),
                lambda sent: client.get_system_shared_memory_status(headers=sent),
                lambda sent: client.update_log_settings({"log_verbose_level": 4}, headers=sent),
                lambda sent: client.get_log_settings(headers=sent),
                lambda sent: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}, headers=sent),
                lambda sent: client.get_inference_statistics(headers=sent),
            ):
                tried += 1
                with contextlib.suppress(InferenceServerException):
                    call(sent)
                    passed.append(("grpc", sent))
    note("restricted", tried=tried, passed=len(passed), code_ran=marker.exists())
    assert not passed and not marker.exists()
    assert served.post("/v2/models/recommend/infer", GOOD)[0] == 200


def element(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(text) if length is None else length) + text


LIES = [
    element(b"B001", 1000), element(b"B001", 2**32 - 1), element(b"B001", 5), element(b"B001", 1), b"abc", b"",
    element(b"B001") * 2, element(b"B001", 0), element(b"\xff\xfe"), element(b"B001") + element(b"B", 9),
]  # fmt: skip


def test_lengths_that_lie_fail_nobody_else(served):
    random_ = random.Random(0)
    refused, end = collections.Counter(), time.monotonic() + SECONDS
    with good_clients(served) as found:
        while time.monotonic() < end:
            status, text = served.binary(random_.choice(LIES), [1, random_.choice((1, 2))])
            refused[status] += 1
            assert status in (200, 400) and (status == 200 or "HISTORY" in text), text
    note("lying lengths", good=found["ok"], failed=failures(found), lies=dict(refused))
    assert refused[400] and found["ok"] > 10 and not failures(found), found


def wild(random_: random.Random, tag: int) -> tuple[str, list[dict]]:
    """A request to an inner step with a field out of its range."""
    tag = random_.choice((tag, tag, tag, 0, -1))

    def tensor(name, data, datatype="INT64"):
        return {"name": name, "datatype": datatype, "shape": [1, len(data)], "data": data}

    values = (-1, 1, 2, 3, 62, 63, 10**6, 2**62, -(2**62))
    if random_.random() < 0.5:
        codes = [random_.choice(values) for _ in range(12)]
        k = random_.choice((0, -1, 1, 51, 2**31 - 1))
        lists = [tensor(name, [random_.choice(values)] * random_.randint(1, 4)) for name in ("BLOCK", "ALLOW_CODES")]
        return "rank", [tensor("CODES", codes), tensor("K", [k], "INT32"), *lists, tensor("BUNDLE", [tag])]
    width = random_.randint(1, 5)
    items = tensor("ITEM_CODES", [random_.choice(values) for _ in range(width)])
    scores = tensor("SCORES", [1.0] * random_.choice((width, 3)), "FP32")
    return "decode", [items, scores, tensor("K", [random_.choice((0, 2, 2**31 - 1))], "INT32"), tensor("RANKED", [tag])]


def test_inner_steps_refuse_what_the_step_before_did_not_make(served, repository):
    random_, refused, end = random.Random(1), collections.Counter(), time.monotonic() + SECONDS
    encoded = json.loads(served.infer(*GOOD["inputs"], model="encode")[1])["outputs"]
    (tag,) = (output["data"][0] for output in encoded if output["name"] == "BUNDLE")
    with good_clients(served) as found:
        while time.monotonic() < end:
            model, inputs = wild(random_, tag)
            status, text = served.infer(*inputs, model=model)
            refused[status] += 1
            named = re.search(r"CODES|K:|BLOCK|SCORES|serves another bundle", text)
            assert status == 200 or (status == 400 and named and "/" not in text and "Traceback" not in text), text
    note("wild steps", good=found["ok"], failed=failures(found), refused=dict(refused))
    assert refused[400] > 10 * refused[200] and found["ok"] > 10 and not failures(found), found


def test_a_shape_that_overflows_is_refused_as_its_own(served):
    before = served.triton().pid
    for name in ("HISTORY", "ALLOW", "DENY"):
        inputs = (
            []
            if name == "HISTORY"
            else [{"name": "HISTORY", "datatype": "BYTES", "shape": [4, 1], "data": ["B001"] * 4}]
        )
        status, text = served.infer(*inputs, {"name": name, "datatype": "BYTES", "shape": [4, 2**62], "data": []})
        assert status == 400 and name in text, text
        assert served.post("/v2/models/recommend/infer", GOOD)[0] == 200
    assert served.triton().pid == before
