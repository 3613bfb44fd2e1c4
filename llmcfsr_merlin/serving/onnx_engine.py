"""serve.engine=onnxruntime: the parts of a model that ONNX Runtime computes faster on a CPU than torch.

The network's 150 small kernels run as one graph, and the products with the catalogue read it in the order that suits
the processor. All else (filters, ties, reasons) is the same code as with torch. The graphs are made when a server
loads the model, so that a repository holds one set of weights, and growing a model needs no other export.
"""

import inspect
import io
import logging
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.scoring.compiled import Axes, Function
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.network.attention import Kernel

OPSET = 17
TOLERANCE = 1e-4
_LARGEST = 1 << 25  # numbers of a matrix that is copied for products: 128 MB. Beyond, reading it takes the time anyway
_COMPARED = 200_000  # items up to which all scores are compared
_log = logging.getLogger("llmcfsr_merlin")


def compile_model(model: Ensemble, products: bool = True) -> None:
    """Let ONNX Runtime compute parts of a model on the CPU, with as many threads as torch has.

    products: as in Compiler; without them no more than a few items are scored here.
    Raises MissingDependency without its packages, and InputError if scores differ from torch's by more than TOLERANCE.
    """
    sample = _sample(model.shape.n_items, model.shape.max_length)
    # Of a large catalogue no product is compiled, and its vectors may be left on the disk: some items will do.
    items = sample.clamp_min(FIRST_ITEM) if not products or model.shape.n_items > _COMPARED else None
    with torch.no_grad():
        wanted = model.scores(sample, items)
        model.compile(OnnxCompiler(torch.get_num_threads(), products))
        hidden = wanted == -torch.inf  # reserved and retired items
        difference = float((model.scores(sample, items) - wanted).masked_fill(hidden, 0).abs().max())
    if not difference <= TOLERANCE * max(float(wanted.masked_fill(hidden, 0).abs().max()), 1.0):
        raise InputError(f"ONNX Runtime's scores differ from torch's by {difference:.1e}: export serve.engine=torch")


class OnnxCompiler:
    """A scoring.compiled.Compiler."""

    def __init__(self, threads: int, products: bool = True):
        self.products = products
        self.kernel: Kernel | None = _FusedAttention.apply
        self._runtime = import_onnxruntime("serve.engine=onnxruntime")
        self._threads = threads

    def module(self, module: nn.Module, example: Sequence[Tensor], free: Axes) -> Function | None:
        """As Compiler.module; what the tracing exporter cannot express is left to torch, with a warning."""
        names = [f"input_{place}" for place in range(len(example))]
        axes = {name: {axis: f"{name}_{axis}" for axis in one} for name, one in zip(names, free)}
        written = io.BytesIO()
        try:
            with torch.no_grad():
                write_onnx(module, tuple(example), written, input_names=names, dynamic_axes=axes)
            session = self._session(written.getvalue())
        except Exception as error:  # operators of a backbone from outside, say
            reason = " ".join(str(error).split())[:200]
            _log.warning("torch computes what ONNX cannot express (%s): %s", type(module).__name__, reason)
            return None
        return lambda *tensors: _run(session, dict(zip(names, tensors)))

    def product(self, matrix: Tensor) -> Function | None:
        if matrix.numel() > _LARGEST:
            return None
        from onnx import TensorProto, helper

        rows, width = matrix.shape
        # Given beside the graph: inside of it, it would be copied three times, and a server keeps what it has freed.
        kept = TensorProto(name="matrix", data_type=TensorProto.FLOAT, dims=[width, rows])
        kept.data_location = TensorProto.EXTERNAL
        kept.external_data.add(key="location", value="beside")
        values = self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(matrix.numpy().T))
        read = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
        found = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", rows])
        node = helper.make_node("MatMul", ["x", "matrix"], ["y"])
        graph = helper.make_graph([node], "product", [read], [found], [kept])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        session = self._session(model.SerializeToString(), {"matrix": values})
        return lambda x: _run(session, {"x": x})

    def _session(self, model: bytes, beside: dict[str, Any] | None = None) -> Any:
        options = self._runtime.SessionOptions()
        if beside:
            options.add_external_initializers(list(beside), list(beside.values()))
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 3  # errors: it warns of what an exporter left in the graph
        options.enable_mem_pattern = False  # sizes differ from call to call
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle servers share the machine
        return self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _FusedAttention(torch.autograd.Function):
    """Causal attention as one operator of ONNX Runtime; of torch's, the exporter makes thirty."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        query, key, value = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(graph: Any, query: Any, key: Any, value: Any, heads: int) -> Any:
        found = graph.op("com.microsoft::MultiHeadAttention", query, key, value, num_heads_i=heads, unidirectional_i=1)
        found.setType(query.type())
        return found


def import_onnxruntime(what: str) -> ModuleType:
    """The package; MissingDependency in one line. what: the setting that needs it."""
    try:
        import onnx  # noqa: F401 - torch's exporter needs it
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"{what} needs onnx and onnxruntime: pip install 'llmcfsr-merlin[onnx]'") from error
    return onnxruntime


def write_onnx(module: nn.Module, example: tuple, target: Any, **names: Any) -> None:
    """Trace a module into an ONNX file, or an open one; names: as of torch.onnx.export."""
    # The tracing exporter: the newer one needs onnxscript and torch 2.5.
    older: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every size that it may hard-code: callers compare the result
        torch.onnx.export(module, example, target, opset_version=OPSET, **names, **older)


def _run(session: Any, tensors: dict[str, Tensor]) -> Tensor:
    (found,) = session.run(None, {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()})
    return torch.from_numpy(found)


def _sample(n_items: int, length: int) -> Tensor:
    """Histories int64 [5, L] of every length class: whole, half, short, one item, none."""
    codes = np.random.default_rng(0).integers(FIRST_ITEM, n_items, (5, length))
    for row, kept in enumerate((length, (length + 1) // 2, min(length, 3), 1, 0)):
        codes[row, kept:] = PAD
    return torch.from_numpy(codes)
