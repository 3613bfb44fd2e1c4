"""The model as a graph: TorchScript by torch and ONNX by onnxruntime answer as the python backend's step.

Triton's own pytorch and onnxruntime backends are not in nvidia-pytriton: their configurations are parsed, not served.
"""

from pathlib import Path

import numpy as np
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.bundle import GRAPHS, Bundle
from llmcfsr_merlin.serving.graph import check_graph, run_graph
from llmcfsr_merlin.serving.repository import export, format_of, publish
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.server import Server, find_tritonserver
from llmcfsr_merlin.serving.steps import Decode, Encode, Recommend
from tests.served import IDS, served_bundle, write_model

ONE_VIEW = {"views": ("collaborative",), "content_match": False}
MODELS = {
    "llm_cfsr": {},
    "lexical": {"lexical": 8},
    "no fusion": {"fuse_embedding": False, "fuse_sequence": False, "fuse_prediction": False},
    "sasrec": ONE_VIEW,
    "bert4rec": {"backbone": "bert4rec", **ONE_VIEW},
    "gru4rec": {"backbone": "gru4rec", **ONE_VIEW},
}


@pytest.fixture(params=["torchscript", "onnx"])
def form(request) -> str:
    if request.param == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    return request.param


def requests(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    pool = np.array([*IDS, "zzz", ""], dtype=object)

    def ids(rows: int, width: int) -> np.ndarray:
        drawn = random.choice(pool, (rows, width))
        return np.array([[raw.encode() for raw in row] for row in drawn], dtype=object).reshape(rows, width)

    made = []
    for _ in range(count):
        rows = int(random.integers(1, 6))
        made.append({
            "HISTORY": ids(rows, random.integers(1, 20)),
            "TOP_K": random.integers(1, 51, (rows, 1)).astype(np.int32),
            "EXCLUDE_SEEN": random.random((rows, 1)) < 0.5,
        })  # fmt: skip
        if random.random() < 0.5:
            made[-1]["DENY"] = ids(rows, random.integers(1, 9))
        if random.random() < 0.5:
            made[-1]["ALLOW"] = np.concatenate([np.full((rows, 1), b"B001", dtype=object), ids(rows, 5)], axis=1)
    return made


@pytest.mark.parametrize("model", MODELS)
def test_graph_answers_as_the_python_step(tmp_path, form, model):
    trained = write_model(tmp_path / "train", **MODELS[model])
    serve = ServeConfig(format=form, max_batch_size=8, max_top_k=50)
    export(trained, tmp_path / "repo", serve)
    version, limits = tmp_path / "repo" / "rank" / "1", Limits(50)
    assert format_of(tmp_path / "repo") == form and not (version / "model.py").exists()
    encode, decode, whole = (step(trained, limits) for step in (Encode, Decode, Recommend))
    for request in requests(25):
        (encoded,) = encode([request])
        ranked = run_graph(version / GRAPHS[form], encoded)
        (found,), (wanted,) = decode([{**ranked, "K": encoded["K"]}]), whole([request])
        np.testing.assert_allclose(found["SCORES"], wanted["SCORES"], atol=1e-4)
        assert ((found["ITEMS"] != wanted["ITEMS"]).mean()) < 0.02, "more than ties moved"
        assert ((found["ITEMS"] == b"") == (wanted["ITEMS"] == b"")).all()


def test_codes_of_another_bundle_are_refused_behind_a_graph(tmp_path, form):
    trained = write_model(tmp_path / "train")
    export(trained, tmp_path / "repo", ServeConfig(format=form))
    (encoded,) = Encode(trained, Limits())([{"HISTORY": np.array([[b"B001"]], dtype=object)}])
    ranked = run_graph(tmp_path / "repo/rank/1" / GRAPHS[form], {**encoded, "BUNDLE": encoded["BUNDLE"] + 1})
    (answer,) = Decode(trained, Limits())([{**ranked, "K": encoded["K"]}])
    assert isinstance(answer, InputError) and "another bundle" in str(answer)


def test_a_graph_of_other_weights_does_not_pass_the_check(tmp_path, form):
    for seed in (0, 1):
        trained = write_model(tmp_path / f"train{seed}", seed=seed)
        export(trained, tmp_path / f"repo{seed}", ServeConfig(format=form))
    bundle = Bundle.open(tmp_path / "train0")
    sample = {
        "CODES": np.full((2, bundle.max_length), 5), "BLOCK": np.zeros((2, 1), int),
        "ALLOW_CODES": np.full((2, 1), -1), "BUNDLE": np.full((2, 1), bundle.tag),
    }  # fmt: skip
    assert check_graph(bundle, tmp_path / "repo0/rank/1" / GRAPHS[form], 100, sample) < 1e-4
    with pytest.raises(InputError, match="differs from the model"):
        check_graph(bundle, tmp_path / "repo1/rank/1" / GRAPHS[form], 100, sample)


@pytest.mark.parametrize(
    "settings",
    [{}, {"device": "auto"}, {"layout": "merged"}, {"layout": "merged", "device": "gpu"},
     {"format": "torchscript"}, {"format": "torchscript", "device": "gpu", "instances": 2},
     {"format": "onnx"}, {"format": "onnx", "device": "gpu", "tensorrt": True}],
    ids=str,
)  # fmt: skip
def test_configurations_parse_and_connect(tmp_path, settings):
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    if settings.get("format") == "onnx":
        pytest.importorskip("onnxruntime")
    serve = ServeConfig(**settings)
    export(write_model(tmp_path / "train"), tmp_path / "repo", serve)
    models = {
        path.parent.name: text_format.Parse(path.read_text(), pb2.ModelConfig())
        for path in sorted((tmp_path / "repo").glob("*/config.pbtxt"))
    }
    model = models["recommend" if serve.layout == "merged" else "rank"]
    (group,) = model.instance_group
    assert (group.Kind.Name(group.kind), group.count) == (f"KIND_{serve.device.upper()}", serve.instances)
    assert bool(model.optimization.execution_accelerators.gpu_execution_accelerator) == serve.tensorrt
    for step in models["recommend"].ensemble_scheduling.step:
        target = models[step.model_name]
        needed = {one.name for one in target.input if not one.optional}  # PROVEN is of the python format alone
        assert needed <= set(step.input_map) <= {one.name for one in target.input}
        assert set(step.output_map) <= {one.name for one in target.output}


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="layout=ensemble"):
        Config.load(None, ["serve.layout=merged", "serve.format=torchscript"])
    with pytest.raises(InputError, match="device=gpu"):
        Config.load(None, ["serve.tensorrt=true", "serve.format=onnx"])
    trained = write_model(tmp_path / "train")
    export(trained, tmp_path / "repo", ServeConfig(format="torchscript"))
    with pytest.raises(InputError, match=r"serve.format=python"):
        publish(trained, tmp_path / "repo", ServeConfig())
    assert publish(trained, tmp_path / "repo", ServeConfig(format="torchscript")) == 2
    assert (served_bundle(tmp_path / "repo").parent / "model.pt").is_file()


def test_a_server_without_the_backend_says_so(tmp_path):
    binary = find_tritonserver()
    if binary is None or (Path(binary).parent.parent / "backends" / "pytorch").is_dir():
        pytest.skip("needs a tritonserver without the pytorch backend")
    export(write_model(tmp_path / "train"), tmp_path / "repo", ServeConfig(format="torchscript"))
    with pytest.raises(InputError, match="no pytorch backend"):
        Server(tmp_path / "repo").start()
