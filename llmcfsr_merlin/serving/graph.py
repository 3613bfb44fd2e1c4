"""The step `rank` as one graph: TorchScript for Triton's pytorch backend, ONNX for onnxruntime and TensorRT.

A graph runs without python, so it includes what Rank does around the network: block and allow lists, the popular
items if a history is empty, the top items (as many as serve.max_top_k; `decode` cuts them to TOP_K). The views of
all items are computed at export. Items with equal scores may be ordered differently than by the python backend.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.bundle import GRAPHS, Bundle
from llmcfsr_merlin.serving.onnx_engine import import_onnxruntime, write_onnx
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import NO_LIST, Rank, Tensors

INPUTS = ("CODES", "BLOCK", "ALLOW_CODES", "BUNDLE")
OUTPUTS = ("ITEM_CODES", "SCORES", "RANKED")
TOLERANCE = 1e-4


class RankGraph(nn.Module):
    """CODES [B, L], BLOCK [B, M], ALLOW_CODES [B, N], BUNDLE [B, 1] (all int64), as steps.Rank reads them.

    Returns ITEM_CODES int64 [B, k], SCORES float32 [B, k] and RANKED int64 [B, 1]: the tag, -1 for another bundle's.
    """

    popularity: Tensor
    reserved: Tensor

    def __init__(self, recommender: Recommender, tag: int, k: int, max_batch_size: int):
        super().__init__()
        ranker = recommender.ranker
        self.score, self.tag, self.n_items = ranker.model.graph(max_batch_size), tag, ranker.n_items
        self.k = min(k, self.n_items - FIRST_ITEM)
        self.register_buffer("popularity", recommender.popularity[None].clone())
        reserved = torch.arange(self.n_items) < FIRST_ITEM
        reserved[ranker.model.retired] = True
        self.register_buffer("reserved", reserved[None])

    def forward(
        self, CODES: Tensor, BLOCK: Tensor, ALLOW_CODES: Tensor, BUNDLE: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        items = CODES.clamp(0, self.n_items - 1)
        scores = torch.where((items == PAD).all(1, keepdim=True), self.popularity, self.score(items))
        nothing = torch.zeros_like(scores)
        blocked = nothing.scatter(1, BLOCK.clamp(0, self.n_items - 1), 1.0) > 0
        allowed = nothing.scatter(1, ALLOW_CODES.clamp(0, self.n_items - 1), 1.0) > 0
        listed = ALLOW_CODES[:, :1] != NO_LIST
        blocked = blocked | self.reserved | (listed & ~allowed)
        best, found = scores.masked_fill(blocked, -torch.inf).topk(self.k, dim=1)
        none = best == -torch.inf
        ranked = torch.where(torch.eq(BUNDLE, self.tag), BUNDLE, torch.full_like(BUNDLE, -1))
        return found.masked_fill(none, PAD), best.masked_fill(none, 0.0), ranked


def write_graph(bundle: Bundle, target: Path, form: str, max_top_k: int, max_batch_size: int) -> None:
    """Write model.pt or model.onnx into `target` and compare its output with steps.Rank; InputError if they differ."""
    recommender = Recommender.load(bundle.directory)
    with torch.no_grad():
        graph = RankGraph(recommender, bundle.tag, max_top_k, max_batch_size).eval()
        path = target / GRAPHS[form]
        example = tuple(torch.from_numpy(tensor) for tensor in _sample(graph, bundle, rows=2).values())
        if form == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of every size that it may hard-code: check_graph runs another
                torch.jit.trace(graph, example, check_trace=False).save(str(path))
        else:
            _write_onnx(graph, example, path)
    check_graph(bundle, path, max_top_k, _sample(graph, bundle, rows=7))


def check_graph(bundle: Bundle, path: Path, max_top_k: int, sample: Tensors) -> float:
    """Largest difference of scores between a written graph and steps.Rank on a sample; InputError above TOLERANCE."""
    found = run_graph(path, sample)
    k = np.full((len(sample["CODES"]), 1), max_top_k, np.int32)
    (wanted,) = Rank(bundle.directory, Limits(max_top_k))([{**sample, "K": k}])
    if isinstance(wanted, InputError):
        raise wanted
    width = found["SCORES"].shape[1]
    difference = float(np.abs(found["SCORES"] - wanted["SCORES"][:, :width]).max())
    if difference > TOLERANCE or ((found["ITEM_CODES"] == PAD) != (wanted["ITEM_CODES"][:, :width] == PAD)).any():
        raise InputError(f"{path.name} differs from the model by {difference:.1e}: export serve.format=python")
    return difference


def run_graph(path: Path, tensors: Tensors) -> Tensors:
    """Output of a written graph in this process, with torch or onnxruntime."""
    if path.name == GRAPHS["torchscript"]:
        with torch.inference_mode():
            answer = torch.jit.load(str(path))(*(torch.from_numpy(tensors[name]) for name in INPUTS))
        return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, answer)}
    session = import_onnxruntime("serve.format=onnx").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {name: tensors[name] for name in INPUTS})))


def _sample(graph: RankGraph, bundle: Bundle, rows: int) -> Tensors:
    """Histories of every length class (full, one item, empty) with and without lists."""
    random = np.random.default_rng(0)
    length = bundle.max_length
    codes = random.integers(FIRST_ITEM, graph.n_items, (rows, length))
    codes[1 % rows, max(length // 2, 1) :] = PAD
    codes[2 % rows if rows > 2 else 1, 1:] = PAD
    if rows > 3:
        codes[3] = PAD
    block = np.full((rows, 2), PAD)
    block[0] = codes[0, 0]
    allow = np.full((rows, 3), PAD)
    allow[:, 0] = NO_LIST
    allow[-1] = random.integers(FIRST_ITEM, graph.n_items, 3)
    return {"CODES": codes, "BLOCK": block, "ALLOW_CODES": allow, "BUNDLE": np.full((rows, 1), bundle.tag)}


def _write_onnx(graph: RankGraph, example: tuple, path: Path) -> None:
    import_onnxruntime("serve.format=onnx")
    axes = {name: {0: "rows"} for name in (*INPUTS, *OUTPUTS)}
    axes["BLOCK"][1], axes["ALLOW_CODES"][1] = "blocked", "allowed"
    write_onnx(graph, example, str(path), input_names=list(INPUTS), output_names=list(OUTPUTS), dynamic_axes=axes)
