"""A running gateway (`llmcfsr serve`) as one column of the page, and as its catalogue if no run is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmcfsr_merlin.explore.answers import Answer, Rank, Recommended
from llmcfsr_merlin.explore.titled_items import FoundItem
from llmcfsr_merlin.runtime.errors import InputError

_SECONDS = 10.0
_KNOWN = 10_000  # titles kept


class ServedModel:
    """The model behind a gateway's address. Its weights are fixed."""

    def __init__(self, url: str, key_file: Path | None = None):
        """key_file: holds the API key. InputError if no gateway answers there."""
        import httpx

        if not url.startswith(("http://", "https://")):
            raise InputError(f"--url: expected a gateway's address like http://localhost:8000, found {url!r}")
        headers = {}
        if key_file is not None:
            try:
                headers["X-API-Key"] = key_file.read_text().split()[-1]
            except (OSError, IndexError, UnicodeDecodeError) as error:
                raise InputError(f"--api-key: expected a file with a key, found {key_file}") from error
        self.label, self.url = "served", url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=_SECONDS, trust_env=False)
        self._titles: dict[str, str | None] = {}
        document = self._ask("GET", "/openapi.json")
        try:
            self.most = int(document["components"]["schemas"]["Question"]["properties"]["k"]["maximum"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"--url: expected a gateway of `llmcfsr serve` at {url}, found another server") from error
        self._explains = True
        popular = [item["id"] for item in self._recommend({"history": [], "k": 1})["items"]]
        self.features = self._features(popular)
        # A history of one item that alone is allowed: nothing is left of it if the model leaves histories out.
        alone = {"history": popular, "allow": popular, "k": 1}
        self.excludes_seen = bool(popular) and not self._recommend(alone)["items"]

    def _features(self, popular: list[str]) -> list[str]:
        """Names from a first answer; a model that gives no reasons has none."""
        try:
            asked = {"history": popular, "k": 1, "explain": True}
            return list(self._recommend(asked)["items"][0]["reasons"]["shares"])
        except (InputError, IndexError):
            self._explains = False
            return []

    def answer(
        self, history: Sequence[str], k: int, exclude_seen: bool, weights: Mapping[str, float] | None = None
    ) -> Answer:
        """As the gateway answers."""
        asked = {"history": list(history), "k": min(k, self.most), "exclude_seen": exclude_seen}
        answer = self._recommend(asked | ({"explain": True} if self._explains else {}))
        none: dict[str, Any] = {"shares": {}, "match": None}
        items = [(one, one.get("reasons") or none) for one in answer["items"]]
        return Answer(
            [Recommended(one["id"], one["score"], why["shares"], why["match"]) for one, why in items],
            answer["unknown"],
            answer["fallback"],
        )

    def rank(
        self, history: Sequence[str], target: str, exclude_seen: bool, weights: Mapping[str, float] | None = None,
        tie: float = 0.5,
    ) -> Rank:  # fmt: skip
        """Within as many items as the gateway gives."""
        deny = [item for item in history if item != target] if exclude_seen else []
        answer = self._recommend({"history": list(history), "k": self.most, "deny": deny, "exclude_seen": False})
        items = [one["id"] for one in answer["items"]]
        return Rank(items.index(target) + 1) if target in items else Rank(None, len(items))

    def search(self, text: str, limit: int) -> list[FoundItem]:
        """As Items.search, by the gateway's own search; of an empty text the most popular items."""
        if text.strip():
            found = self._ask("GET", "/items", params={"query": text.strip()[:100], "limit": limit})["items"]
        else:
            found = self._recommend({"history": [], "k": min(limit, self.most)})["items"]
        self._remember({one["id"]: one.get("title") for one in found})
        return [FoundItem(one["id"], one.get("title"), one.get("interactions")) for one in found]

    def title_of(self, item: str) -> str:
        if item not in self._titles:
            try:
                self._remember({item: self._ask("GET", f"/items/{quote(item, safe='')}")["title"]})
            except InputError:  # an item that it does not know
                self._remember({item: None})
        return self._titles[item] or item

    def _recommend(self, asked: dict) -> dict:
        answer = self._ask("POST", "/recommend", json=asked)
        self._remember({one["id"]: one.get("title") for one in answer["items"]})
        return answer

    def _remember(self, titles: Mapping[str, str | None]) -> None:
        if len(self._titles) > _KNOWN:
            self._titles.clear()
        self._titles |= titles

    def _ask(self, method: str, path: str, **what: Any) -> Any:
        import httpx

        try:
            reply = self._client.request(method, path, **what)
            answer = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise InputError(f"no gateway answers at {self.url} ({error}): start one with `llmcfsr serve`") from error
        if reply.status_code != 200:
            said = answer.get("detail", answer) if isinstance(answer, dict) else answer
            raise InputError(f"the gateway at {self.url} refused the request: {said}")
        return answer
