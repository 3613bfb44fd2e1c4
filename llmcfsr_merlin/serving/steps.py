"""The steps of the ensemble as plain classes over dictionaries of numpy arrays; backend.py runs them in Triton.

A step answers a list of requests at once: requests of different lengths and options join one forward pass. Rank alone
imports torch: a server that starts again waits for that.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmcfsr_merlin.dataset.names import FIRST_ITEM, MASKED, OOV, PAD, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.bundle import FILES, Bundle
from llmcfsr_merlin.serving.request import Limits, parse

if TYPE_CHECKING:
    from torch import Tensor

    from llmcfsr_merlin.recommender import Encoded

Tensors = dict[str, np.ndarray]
Result = Tensors | InputError  # an error fails only its request: the others of the batch are answered
EXPLAIN = "EXPLAIN"  # among a request's tensors: its answer is to have REASONS
NO_LIST = -1  # first id of ALLOW_CODES in a row without an allow list


def each(requests: list[Tensors], work: Callable[[Tensors], Tensors]) -> list[Result]:
    """Apply `work` to every request; a bad request becomes its InputError."""
    results: list[Result] = []
    for request in requests:
        try:
            results.append(work(request))
        except InputError as error:
            results.append(error)
    return results


class Encode:
    """Raw ids and options to encoded item ids.

    CODES [B, L], K [B, 1], BLOCK [B, M], ALLOW_CODES [B, N], UNKNOWN, FALLBACK and BUNDLE [B, 1]; EXPLAIN [B, 1] if a
    row is to have reasons.
    """

    def __init__(self, directory: Path, limits: Limits, device: str = "cpu", vocabulary: Vocabulary | None = None):
        """vocabulary: the bundle's, if it has been checked and read."""
        bundle = Bundle.open(directory, FILES["encode"] if vocabulary is None else ())
        self.tag, self.max_length, self.limits = bundle.tag, bundle.max_length, limits
        self.excludes_seen = bundle.history_rule == MASKED
        self.vocabulary = vocabulary or Vocabulary.load(bundle.directory / VOCABULARY)

    def __call__(self, requests: list[Tensors]) -> list[Result]:
        return each(requests, self._one)

    def _one(self, tensors: Tensors) -> Tensors:
        rows = parse(tensors, self.limits, self.excludes_seen)
        codes, unknown = np.zeros((len(rows), self.max_length), np.int64), np.zeros(len(rows), np.int32)
        block, allow = [], []
        for i, row in enumerate(rows):  # as recommender.Encoder
            history = self.vocabulary.encode(row.history)
            seen = [code for code in history if code >= FIRST_ITEM]
            kept = seen[-self.max_length :]
            codes[i, : len(kept)], unknown[i] = kept, history.count(OOV)
            block.append(self._known(row.deny) + (seen if row.exclude_seen else []))
            allow.append([NO_LIST] if row.allow is None else self._known(row.allow))
        column = (len(rows), 1)
        explain = np.array([row.explain for row in rows]).reshape(column)
        return {
            "CODES": codes,
            "K": np.array([row.k for row in rows], np.int32).reshape(column),
            "BLOCK": _padded(block),
            "ALLOW_CODES": _padded(allow),
            "UNKNOWN": unknown.reshape(column),
            "FALLBACK": (codes[:, :1] == PAD),
            "BUNDLE": np.full(column, self.tag, np.int64),
        } | ({EXPLAIN: explain} if explain.any() else {})

    def _known(self, ids: list[str]) -> list[int]:
        return [code for code in self.vocabulary.encode(ids) if code >= FIRST_ITEM]


class Rank:
    """Encoded item ids to the top items, as many as the largest K of a request.

    ITEM_CODES int64 [B, k] and SCORES float32 [B, k], both 0 if none is left; RANKED [B, 1]: the bundle; PROVEN bool
    [B, 1]: whether these are the best of all items for sure. If EXPLAIN is among the tensors, REASONS bytes [B, k]:
    recommender.Reason as JSON, empty if no item is left.
    """

    def __init__(self, directory: Path, limits: Limits, device: str = "cpu"):
        bundle = Bundle.open(directory, ())  # Recommender.load checks the files
        from llmcfsr_merlin.recommender import Recommender
        from llmcfsr_merlin.runtime.machine import choose_device
        from llmcfsr_merlin.scoring.network.small_batches import SIZES

        chosen = choose_device(device, "serve.device")
        self.tag, self.limits = bundle.tag, limits
        self.recommender = Recommender.load(
            bundle.directory, str(chosen), shortlist=limits.shortlist, uncertain=limits.uncertain, shard=limits.shard
        )
        if limits.engine == "onnxruntime" and chosen.type == "cpu":
            from llmcfsr_merlin.serving.onnx_engine import compile_model

            compile_model(self.recommender.ranker.model, products=not self.recommender.ranker.shortlist)
        # Warm-up: on a GPU each size is captured at its first batch.
        self.warm_up_rows = SIZES if chosen.type == "cuda" else (1,)

    def __call__(self, requests: list[Tensors]) -> list[Result]:
        results = each(requests, self._checked)
        good = [i for i, result in enumerate(results) if not isinstance(result, InputError)]
        if good:
            for i, answer in zip(good, self.answers([requests[i] for i in good])):
                results[i] = answer
        return results

    def _checked(self, tensors: Tensors) -> Tensors:
        """Clients can call this step directly too: every tensor of a request is validated."""
        _check_rows(tensors, ("CODES", "K", "BLOCK", "ALLOW_CODES", "BUNDLE"))
        _same_bundle(tensors["BUNDLE"], self.tag, "rank")
        _check_k(tensors["K"], self.limits)
        rows = self.recommender.ranker.n_items
        codes = tensors["CODES"]
        _check_codes("CODES", codes, rows)
        if codes.shape[1] > self.recommender.ranker.max_length:
            raise InputError(
                f"CODES: expected at most {self.recommender.ranker.max_length} item ids per row, found {codes.shape[1]}"
            )
        if ((codes[:, 1:] != PAD) & (codes[:, :-1] == PAD)).any():
            raise InputError("CODES: expected padding (0) only after a row's last item id, found it before one")
        _check_codes("BLOCK", tensors["BLOCK"], rows)
        allowed = tensors["ALLOW_CODES"]
        _check_codes("ALLOW_CODES", np.where(allowed[:, :1] == NO_LIST, PAD, allowed), rows)
        return tensors

    def answers(self, requests: list[Tensors]) -> list[Tensors]:
        """Of requests that `encode` made in this process, or that have been checked."""
        import torch

        from llmcfsr_merlin.recommender import Encoded

        codes = np.concatenate([request["CODES"] for request in requests])
        k = np.concatenate([request["K"] for request in requests])[:, 0]
        longest = max(int((codes != PAD).sum(1).max()), 1)  # right-padded: the rest is padding in every row
        unknown = np.zeros(len(codes), np.int64)  # `encode` has reported the unknown ids
        encoded = Encoded(torch.from_numpy(codes[:, :longest]), unknown, (codes == PAD).all(1), [])
        items, scores, exact = self.recommender.rank(encoded, int(k.max()), self._blocked(requests))
        scores = np.where(items >= FIRST_ITEM, scores, 0).astype(np.float32)
        answers, start = [], 0
        for request in requests:
            stop = start + len(request["CODES"])
            wide = int(k[start:stop].max())
            answers.append(
                {
                    "ITEM_CODES": _widen(items[start:stop, :wide], wide),
                    "SCORES": _widen(scores[start:stop, :wide], wide),
                    "RANKED": request["BUNDLE"],
                    "PROVEN": exact[start:stop, None],
                }
            )
            if EXPLAIN in request:
                own = slice(start, stop)
                rows = Encoded(encoded.item_ids[own], encoded.unknown[own], encoded.fallback[own], [])
                answers[-1]["REASONS"] = self._reasons(rows, answers[-1]["ITEM_CODES"])
            start = stop
        return answers

    def _reasons(self, encoded: "Encoded", items: np.ndarray) -> np.ndarray:
        texts = [
            [b"" if reason is None else json.dumps(asdict(reason)).encode() for reason in row]
            for row in self.recommender.reasons(encoded, items)
        ]
        return np.array(texts, dtype=object)

    def _blocked(self, requests: list[Tensors]) -> "Tensor | None":
        """Bool tensor [B, V] of what each row must not get; None if nothing is blocked."""
        if not any((r["ALLOW_CODES"][:, 0] != NO_LIST).any() or r["BLOCK"].any() for r in requests):
            return None
        allow = [None if row[0] == NO_LIST else row for request in requests for row in request["ALLOW_CODES"]]
        block = [row for request in requests for row in request["BLOCK"]]
        return self.recommender.ranker.blocked(allow, block)  # id 0, the padding of both, is never recommended anyway


class Decode:
    """Encoded item ids to raw ids: ITEMS bytes [B, K], empty if no item is left, and SCORES; each row cut to its K.

    EXACT bool [B, 1]: PROVEN of `rank`; a graph, which has none, scores every item.
    """

    def __init__(self, directory: Path, limits: Limits, device: str = "cpu", vocabulary: Vocabulary | None = None):
        """vocabulary: as in Encode."""
        bundle = Bundle.open(directory, FILES["decode"] if vocabulary is None else ())
        self.tag, self.limits = bundle.tag, limits
        self.vocabulary = vocabulary or Vocabulary.load(bundle.directory / VOCABULARY)

    def __call__(self, requests: list[Tensors]) -> list[Result]:
        return each(requests, self._one)

    def _one(self, tensors: Tensors) -> Tensors:
        _check_rows(tensors, ("ITEM_CODES", "SCORES", "K", "RANKED"))
        _same_bundle(tensors["RANKED"], self.tag, "decode")
        k = tensors["K"]
        _check_k(k, self.limits)
        _check_codes("ITEM_CODES", tensors["ITEM_CODES"], len(self.vocabulary))
        if tensors["SCORES"].shape != tensors["ITEM_CODES"].shape:
            raise InputError(
                f"SCORES: expected the shape of ITEM_CODES, {list(tensors['ITEM_CODES'].shape)}, found "
                f"{list(tensors['SCORES'].shape)}"
            )
        return self.answer(tensors)

    def answer(self, tensors: Tensors) -> Tensors:
        """Of tensors that this process made, or that have been checked."""
        k = tensors["K"]
        codes, scores = (_widen(tensors[name][:, : k.max()], k.max()) for name in ("ITEM_CODES", "SCORES"))
        keep = np.arange(k.max()) < k
        ids = self.vocabulary.decode(np.where(keep, codes, PAD)).tolist()
        return {
            "ITEMS": np.array([[b"" if raw is None else raw.encode() for raw in row] for row in ids], dtype=object),
            "SCORES": np.where(keep, scores, np.float32(0)),
            "EXACT": tensors.get("PROVEN", np.ones((len(k), 1), bool)),
        }


class Recommend:
    """The three steps in one, without tensors travelling between processes (layout `merged`).

    A request with EXPLAIN bool [B, 1] has REASONS bytes [B, k] beside its items, as Rank gives them, if any row asks.
    """

    def __init__(self, directory: Path, limits: Limits, device: str = "cpu"):
        self.rank = Rank(directory, limits, device)
        vocabulary = self.rank.recommender.vocabulary
        self.encode = Encode(directory, limits, vocabulary=vocabulary)
        self.decode = Decode(directory, limits, vocabulary=vocabulary)

    def __call__(self, requests: list[Tensors]) -> list[Result]:
        results = self.encode(requests)
        encoded = {i: result for i, result in enumerate(results) if not isinstance(result, InputError)}
        if encoded:
            for (i, asked), ranked in zip(encoded.items(), self.rank.answers(list(encoded.values()))):
                said = {name: asked[name] for name in ("UNKNOWN", "FALLBACK", "BUNDLE")}
                told = {"REASONS": ranked["REASONS"]} if "REASONS" in ranked else {}
                results[i] = self.decode.answer({**ranked, "K": asked["K"]}) | said | told
        return results


def _check_rows(tensors: Tensors, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in tensors:
            raise InputError(f"{name} is missing: expected the tensors of the previous step")
        if tensors[name].ndim != 2 or not tensors[name].size or len(tensors[name]) != len(tensors[names[0]]):
            raise InputError(
                f"{name}: expected {len(tensors[names[0]])} rows as in {names[0]}, found shape "
                f"{list(tensors[name].shape)}"
            )


def _check_k(k: np.ndarray, limits: Limits) -> None:
    if k.shape[1] != 1:
        raise InputError(f"K: expected one value per row, found shape {list(k.shape)}")
    wrong = k[(k < 1) | (k > limits.max_top_k)]
    if len(wrong):
        raise InputError(f"K: expected 1 to {limits.max_top_k} (serve.max_top_k), found {wrong[0]}")


def _check_codes(name: str, codes: np.ndarray, n_items: int) -> None:
    wrong = codes[(codes != PAD) & ((codes < FIRST_ITEM) | (codes >= n_items))]
    if len(wrong):
        raise InputError(f"{name}: expected ids {FIRST_ITEM} to {n_items - 1} or {PAD} (padding), found {wrong[0]}")


def _padded(lists: list[list[int]]) -> np.ndarray:
    # Widths of 1, 2, 4, ...: backends that cannot batch requests of different shapes can still batch most.
    width = 1 << (max(1, max(map(len, lists))) - 1).bit_length()
    return np.array([codes + [PAD] * (width - len(codes)) for codes in lists], np.int64)


def _widen(array: np.ndarray, width: int) -> np.ndarray:
    if array.shape[1] == width:  # nearly always, and np.pad takes a tenth of a millisecond
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(np.pad(array, ((0, 0), (0, width - array.shape[1]))))


def _same_bundle(found: np.ndarray, tag: int, step: str) -> None:
    if (found != tag).any():
        raise InputError(f"step {step} serves another bundle than the previous step: load all steps of one export")
