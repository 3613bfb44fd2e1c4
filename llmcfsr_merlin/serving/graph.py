"""The step `rank` as one graph: TorchScript for Triton's pytorch backend, ONNX for onnxruntime and TensorRT.

A graph has no python beside it, so what Rank does around the network is part of it: block and allow lists, the popular
items where a history is empty, the top items (as many as serve.max_top_k; `decode` cuts them to TOP_K). The views of
all items are computed at export. Among items of equal score the order may differ from the python backend's.
"""

import contextlib
import copy
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.serving.bundle import Bundle
from llmcfsr_merlin.serving.repository import GRAPHS
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import NO_LIST, Rank, Tensors

INPUTS = ("CODES", "BLOCK", "ALLOW_CODES", "BUNDLE")
OUTPUTS = ("ITEM_CODES", "SCORES", "RANKED")
# The cosines of one part of the catalogue, as numbers, for a full batch: 256 MB.
_ROOM = 1 << 26
OPSET = 17
TOLERANCE = 1e-4


class RankGraph(nn.Module):
    """CODES [B, L], BLOCK [B, M], ALLOW_CODES [B, N], BUNDLE [B, 1] (all int64), as steps.Rank reads them.

    Returns ITEM_CODES int64 [B, k], SCORES float32 [B, k] and RANKED int64 [B, 1]: the tag, -1 for another bundle's.
    """

    def __init__(self, recommender: Recommender, tag: int, k: int, max_batch_size: int):
        super().__init__()
        ranker = recommender.ranker
        network = copy.deepcopy(ranker.network)
        network.items = _ItemTable(ranker.network)
        self.network, self.tag, self.rows = network, tag, ranker.rows
        self.k = min(k, ranker.rows - FIRST_ITEM)
        self.register_buffer("candidates", ranker.catalogue.candidates.T.contiguous())
        popularity = recommender._popularity.clone()
        self.register_buffer("popularity", popularity[None])
        self.register_buffer("reserved", (torch.arange(ranker.rows) < FIRST_ITEM)[None])
        self.units = ranker.catalogue.unit_vectors is not None and ranker.network.matches
        if self.units:
            self.register_buffer("match_weight", ranker.network.match_weight())
            self.register_buffer("unit_vectors", ranker.catalogue.unit_vectors)
        self.follows = ranker.network.follows
        self.part = max(_ROOM // (max_batch_size * ranker.max_length), 1024)

    def forward(self, CODES: Tensor, BLOCK: Tensor, ALLOW_CODES: Tensor, BUNDLE: Tensor):
        codes = CODES.clamp(0, self.rows - 1)
        scores = self.network.user_states(codes) @ self.candidates
        if self.units:
            scores = scores + self.match_weight * self._content_match(codes)
        if self.follows:
            scores = scores + self.network.transition_gamma * self.network.transition_match(codes)
        scores = torch.where((codes == PAD).all(1, keepdim=True), self.popularity, scores)
        nothing = torch.zeros_like(scores)
        blocked = nothing.scatter(1, BLOCK.clamp(0, self.rows - 1), 1.0) > 0
        allowed = nothing.scatter(1, ALLOW_CODES.clamp(0, self.rows - 1), 1.0) > 0
        listed = ALLOW_CODES[:, :1] != NO_LIST
        blocked = blocked | self.reserved | (listed & ~allowed)
        best, items = scores.masked_fill(blocked, -torch.inf).topk(self.k, dim=1)
        none = best == -torch.inf
        ranked = torch.where(self.tag == BUNDLE, BUNDLE, torch.full_like(BUNDLE, -1))
        return items.masked_fill(none, PAD), best.masked_fill(none, 0.0), ranked

    def _content_match(self, codes: Tensor) -> Tensor:
        """As DualViewNetwork.content_match, with the padded positions in it: their number is not known to a graph."""
        padding = (codes < FIRST_ITEM).unsqueeze(-1)
        read = self.unit_vectors[codes]
        best = [(read @ part.T).masked_fill(padding, -1.0).amax(1) for part in self.unit_vectors.split(self.part)]
        return torch.cat(best, 1) * (~padding).any(1)


class _ItemTable(nn.Module):
    """ItemViews with every view computed: the frozen vectors and their adapter are not needed any more."""

    def __init__(self, network: nn.Module, chunk: int = 65536):
        super().__init__()
        parts = torch.arange(network.rows, device=network.gamma.device).split(chunk)
        views = zip(*(network.items(part) for part in parts))
        self.views = nn.ParameterList(nn.Parameter(torch.cat(view), requires_grad=False) for view in views)

    def forward(self, codes: Tensor) -> list[Tensor]:
        return [nn.functional.embedding(codes, view) for view in self.views]


def write_graph(bundle: Bundle, target: Path, form: str, max_top_k: int, max_batch_size: int) -> None:
    """Write model.pt or model.onnx into `target` and compare its answers with steps.Rank; InputError if they differ."""
    recommender = Recommender.load(bundle.directory)
    with torch.no_grad():
        graph = RankGraph(recommender, bundle.tag, max_top_k, max_batch_size).eval()
        path = target / GRAPHS[form]
        example = tuple(torch.from_numpy(tensor) for tensor in _sample(graph, bundle, rows=2).values())
        with _quiet():
            if form == "torchscript":
                torch.jit.trace(graph, example, check_trace=False).save(str(path))
            else:
                _write_onnx(graph, example, path)
    check_graph(bundle, path, max_top_k, _sample(graph, bundle, rows=7))


def check_graph(bundle: Bundle, path: Path, max_top_k: int, sample: Tensors) -> float:
    """Largest difference of scores between a written graph and steps.Rank on a sample; InputError above TOLERANCE."""
    found = run_graph(path, sample)
    k = np.full((len(sample["CODES"]), 1), max_top_k, np.int32)
    (wanted,) = Rank(bundle.directory, Limits(max_top_k))([{**sample, "K": k}])
    width = found["SCORES"].shape[1]
    difference = float(np.abs(found["SCORES"] - wanted["SCORES"][:, :width]).max())
    if difference > TOLERANCE or ((found["ITEM_CODES"] == PAD) != (wanted["ITEM_CODES"][:, :width] == PAD)).any():
        raise InputError(f"{path.name} differs from the model by {difference:.1e}: export serve.format=python")
    return difference


def run_graph(path: Path, tensors: Tensors) -> Tensors:
    """Answer of a written graph in this process, by torch or by onnxruntime."""
    if path.name == GRAPHS["torchscript"]:
        with torch.inference_mode():
            answer = torch.jit.load(str(path))(*(torch.from_numpy(tensors[name]) for name in INPUTS))
        return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, answer)}
    session = _onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {name: tensors[name] for name in INPUTS})))


def _sample(graph: RankGraph, bundle: Bundle, rows: int) -> Tensors:
    """Histories of every length class (full, one item, empty) with and without lists."""
    random = np.random.default_rng(0)
    length = bundle.max_length
    codes = random.integers(FIRST_ITEM, graph.rows, (rows, length))
    codes[1 % rows, max(length // 2, 1) :] = PAD
    codes[2 % rows if rows > 2 else 1, 1:] = PAD
    if rows > 3:
        codes[3] = PAD
    block = np.full((rows, 2), PAD)
    block[0] = codes[0, 0]
    allow = np.full((rows, 3), PAD)
    allow[:, 0] = NO_LIST
    allow[-1] = random.integers(FIRST_ITEM, graph.rows, 3)
    return {"CODES": codes, "BLOCK": block, "ALLOW_CODES": allow, "BUNDLE": np.full((rows, 1), bundle.tag)}


def _write_onnx(graph: RankGraph, example: tuple, path: Path) -> None:
    _onnxruntime()
    # The exporter by tracing: the newer one needs onnxscript and torch 2.5.
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    axes = {name: {0: "rows"} for name in (*INPUTS, *OUTPUTS)}
    axes["BLOCK"][1], axes["ALLOW_CODES"][1] = "blocked", "allowed"
    names = {"input_names": list(INPUTS), "output_names": list(OUTPUTS), "dynamic_axes": axes}
    torch.onnx.export(graph, example, str(path), opset_version=OPSET, **names, **older)


def _onnxruntime():
    try:
        import onnx  # noqa: F401 - torch's exporter needs it
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            "serve.format=onnx needs onnx and onnxruntime: pip install 'llmcfsr-merlin[onnx]'"
        ) from error
    return onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every size that it takes as fixed; check_graph runs another batch size to see that none is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
