"""Client of a running server with the interface of Recommender: same arguments, same table."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from llmcfsr_merlin.dataset.raw.fields.ids import NotAnId, clean_id
from llmcfsr_merlin.recommender import Reason, Recommendations, check_question, no_recommendations, table
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.serving.channels import channel_options
from llmcfsr_merlin.serving.repository import EXPLAIN, FRONT

T = TypeVar("T")

_OUTPUTS = ("ITEMS", "SCORES", "UNKNOWN", "FALLBACK", "EXACT")


class Client:
    """A connection to a server of an exported repository.

    url: `grpc://host:8001` or `http://host:8000`. timeout: seconds per request. Raises InputError when the server
    cannot be reached, is not ready or refuses the request, MissingDependency without tritonclient. Not shared between
    threads.

    >>> Client("grpc://localhost:8001").recommend([["B00A", "B00B"]], k=10)   # doctest: +SKIP
    """

    def __init__(self, url: str, timeout: float = 30.0):
        scheme, separator, address = url.rstrip("/").partition("://")
        if not separator or scheme not in ("http", "grpc") or ":" not in address:
            raise InputError(f"expected a url like grpc://localhost:8001 or http://localhost:8000, found {url!r}")
        self.url, self.timeout = url, timeout
        try:
            if scheme == "http":
                import tritonclient.http as triton
            else:
                import tritonclient.grpc as triton
        except ImportError as error:
            raise MissingDependency("the client needs tritonclient: pip install 'tritonclient[grpc,http]'") from error
        self._triton, self._grpc = triton, scheme == "grpc"
        self._address = address
        self._options = {"client_timeout": timeout} if self._grpc else {}
        self._broken: tuple = (OSError, TimeoutError)
        if not self._grpc:
            from geventhttpclient.response import HTTPParseError  # also a connection that closed in the middle

            self._broken += (HTTPParseError,)
        self._connect()
        self._max_rows: int | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        if self._grpc:
            options: dict[str, Any] = {"channel_args": channel_options(self._address)}
        else:
            options = {"connection_timeout": self.timeout, "network_timeout": self.timeout}
        self._connection = self._triton.InferenceServerClient(self._address, **options)

    def close(self) -> None:
        self._connection.close()

    def answer(
        self,
        histories: Sequence[Sequence],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        allow: Sequence | None = None,
        deny: Sequence | None = None,
    ) -> Recommendations:
        """Like Recommender.answer, from the server; arrays are always k wide. Many histories are split into requests.

        Raises InputError if a string is given instead of a list of ids: one history is [["a", "b"]].
        """
        histories, allow, deny = check_question(histories, k, allow, deny)
        if not histories:
            return no_recommendations(k)
        rows = self._call(self._rows_per_request)
        parts = []
        for start in range(0, len(histories), rows):
            part = histories[start : start + rows]
            tensors = {
                "HISTORY": _texts(part),
                "TOP_K": np.full((len(part), 1), k, np.int32),
            }
            if exclude_seen is not None:
                tensors["EXCLUDE_SEEN"] = np.full((len(part), 1), exclude_seen)
            tensors |= {name: _texts([ids] * len(part)) for name, ids in (("ALLOW", allow), ("DENY", deny)) if ids}
            parts.append(self._call(partial(self._ask, tensors)))
        items, scores, unknown, fallback, exact = (np.concatenate(arrays) for arrays in zip(*parts))
        empty = items == b""
        names = np.full(items.shape, None, dtype=object)
        names[~empty] = [raw.decode() for raw in items[~empty]]
        scores = np.where(empty, np.nan, scores).astype(np.float32)
        return Recommendations(names, scores, unknown[:, 0].astype(np.int64), fallback[:, 0], exact[:, 0])

    def recommend(self, histories: Sequence[Sequence], k: int = 10, **filters: Any) -> pd.DataFrame:
        """Like Recommender.recommend: one row per recommendation with history (position), rank (from 1), item_id,
        score."""
        return table(self.answer(histories, k, **filters))

    def _rows_per_request(self) -> int:
        if self._max_rows is None:
            self._max_rows = int(self._config()["max_batch_size"])
        return self._max_rows

    def _inputs(self) -> set[str]:
        return {one["name"] for one in self._config()["input"]}

    def _config(self) -> dict:
        if not self._connection.is_model_ready(FRONT):
            raise InputError(
                f"the server at {self.url} has no ready model {FRONT!r}: is it serving an exported repository?"
            )
        options = {"as_json": True} if self._grpc else {}
        config = self._connection.get_model_config(FRONT, **options)
        return config["config"] if self._grpc else config

    def explain(self, history: Sequence, items: Sequence) -> list[Reason | None]:
        """Like Recommender.explain, from the server; of no more items than serve.max_top_k.

        Raises InputError if the server gives no reasons.
        """
        if not len(items):
            return []
        (history,), asked, _ = check_question([history], 1, items)
        model = EXPLAIN if self._call(lambda: self._connection.is_model_ready(EXPLAIN)) else FRONT
        if model == FRONT and "EXPLAIN" not in self._call(self._inputs):
            raise InputError(f"the server at {self.url} gives no reasons: export anew with serve.format=python")
        texts = _texts([asked or []])
        tensors = {
            "HISTORY": _texts([history]),
            "ALLOW": texts,
            "TOP_K": np.full((1, 1), len(set(texts[0])), np.int32),
            "EXCLUDE_SEEN": np.zeros((1, 1), bool),  # an item of the history has reasons too
        }
        if model == FRONT:
            tensors["EXPLAIN"] = np.ones((1, 1), bool)
        found, reasons = self._call(lambda: self._ask(tensors, model, ("ITEMS", "REASONS")))
        told = {raw: Reason(**json.loads(text)) for raw, text in zip(found[0], reasons[0]) if raw}
        return [told.get(raw) for raw in texts[0]]

    def _ask(
        self, tensors: dict[str, np.ndarray], model: str = FRONT, names: Sequence[str] = _OUTPUTS
    ) -> list[np.ndarray]:
        kinds = {"O": "BYTES", "i": "INT32", "b": "BOOL"}
        inputs = []
        for name, array in tensors.items():
            tensor = self._triton.InferInput(name, list(array.shape), kinds[array.dtype.kind])
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        outputs = [self._triton.InferRequestedOutput(name) for name in names]
        reply = self._connection.infer(model, inputs, outputs=outputs, **self._options)
        return [reply.as_numpy(name) for name in names]

    def _call(self, work: Callable[[], T]) -> T:
        from tritonclient.utils import InferenceServerException

        try:
            return work()
        except InferenceServerException as error:
            message = " ".join(error.message().split())
            if str(error.status()) in ("StatusCode.UNAVAILABLE", "503"):
                self.close()  # a gRPC channel backs off exponentially before it retries
                self._connect()
                raise InputError(
                    f"no server answers at {self.url} ({message}): start one with `llmcfsr serve`"
                ) from error
            raise InputError(f"the server at {self.url} refused the request: {message}") from error
        except self._broken as error:
            raise InputError(f"no server answers at {self.url} ({error}): start one with `llmcfsr serve`") from error


def _texts(rows: Sequence[Sequence]) -> np.ndarray:
    """Ragged ids, cleaned as those of a log (clean_id), to BYTES [B, longest]; padding and None are empty."""
    width = max(1, max(len(row) for row in rows))
    texts = np.full((len(rows), width), b"", dtype=object)
    for i, row in enumerate(rows):
        texts[i, : len(row)] = [_text(raw) for raw in row]
    return texts


def _text(raw: object) -> bytes:
    try:
        return (clean_id(raw) or "").encode()
    except NotAnId as error:
        raise InputError(f"{error}: a history is a list of item ids") from error
