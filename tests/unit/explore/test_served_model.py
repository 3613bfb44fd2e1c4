"""A gateway as a column of the page: the document and the answers of a gateway, from a stand-in on loopback."""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from llmcfsr_merlin.explore.answers import Rank
from llmcfsr_merlin.explore.explorer import Explorer
from llmcfsr_merlin.explore.served_model import ServedModel
from llmcfsr_merlin.runtime.errors import InputError
from tests.loopback import listening

pytest.importorskip("httpx")
DOCUMENT = (Path(__file__).parents[3] / "schemas" / "openapi.json").read_bytes()
TITLES = {f"i{place}": f"<b>item</b> {place}" for place in range(30)}


class StandIn(BaseHTTPRequestHandler):
    """Answers all items in order but those denied; explains them if `explains`."""

    explains, key, excludes_seen = True, None, False

    def do_GET(self):
        where = urlsplit(self.path)
        if where.path == "/openapi.json":
            return self._say(200, DOCUMENT)
        if where.path == "/items":
            asked = parse_qs(where.query)
            items = [{"id": i, "title": t, "interactions": 3} for i, t in TITLES.items() if asked["query"][0] in t]
            return self._say(200, {"items": items[: int(asked["limit"][0])]})
        item = where.path.removeprefix("/items/")
        return self._say(200, {"title": TITLES[item]}) if item in TITLES else self._say(404, {"detail": "no such item"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.key and self.headers.get("x-api-key") != self.key:
            return self._say(401, {"detail": "expected an API key"})
        if asked.get("explain") and not self.explains:
            return self._say(422, {"detail": "this model gives no reasons"})
        seen = asked["history"] if asked.get("exclude_seen", self.excludes_seen) else []
        out = {*asked.get("deny", []), *seen}
        left = [item for item in asked.get("allow", TITLES) if item not in out]
        items = [{"id": item, "title": TITLES[item], "score": 2.0} for item in left]
        if asked.get("explain"):
            for item in items:
                item["reasons"] = {"shares": {"network": 1.5, "content": 0.5}, "match": "i3"}
        answer = {"items": items[: asked["k"]], "unknown": 0, "fallback": not asked["history"]}
        return self._say(200, answer)

    def _say(self, status, value):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def standing_in(**settings):
    return listening(type("Changed", (StandIn,), settings))


def test_a_gateway_alone_is_a_page_of_its_own():
    with standing_in() as url:
        explorer = Explorer(url=url)
        session = explorer.session()
        session.history = ["i3"]
        (card,) = explorer.cards(session)
        assert (card.label, explorer.users, explorer.runs) == ("served", None, [])
        assert card.rows[0].title == card.rows[3].match == "<b>item</b> 0" or card.rows[0].match == "<b>item</b> 3"
        assert [(part.feature, part.share) for part in card.rows[0].bar] == [("network", 1.5), ("content", 0.5)]
        assert [one.item for one in explorer.items.search("item", 5)] == ["i0", "i1", "i2", "i3", "i4"]
        assert explorer.items.title_of("i29") == "<b>item</b> 29" and explorer.items.title_of("other") == "other"


def test_the_page_starts_with_the_history_rule_of_the_gateway():
    for rule in (True, False):
        with standing_in(excludes_seen=rule) as url:
            assert Explorer(url=url).session().exclude_seen is rule


@pytest.mark.parametrize("excludes_seen", [False, True])
def test_ranks_reach_as_far_as_the_gateway_answers(excludes_seen):
    with standing_in(excludes_seen=excludes_seen) as url:
        model = ServedModel(url)
        assert model.most == 100
        assert model.rank(["i0", "i4"], "i4", True) == Rank(4)  # i0 is left out, the target never
        assert model.rank(["i0"], "i4", False) == Rank(5)
        assert model.rank(["i0"], "other", False) == Rank(None, 30)


def test_a_run_and_a_gateway_stand_side_by_side(run):
    with standing_in(explains=False) as url:
        explorer = Explorer([run], url)
        session = explorer.session()
        session.user = explorer.users.draw("tail", 0)
        session.history = session.user.history
        first, second = explorer.cards(session)
        assert first.rows[0].bar and not second.rows[0].bar and second.rank == Rank(None, 30)


def test_keys_and_refusals(tmp_path):
    with standing_in(key="secret") as url:
        with pytest.raises(InputError, match="API key"):
            ServedModel(url)
        (tmp_path / "keys").write_text("shop secret\n")
        assert ServedModel(url, tmp_path / "keys").features == ["network", "content"]
    with pytest.raises(InputError, match="no gateway answers"):
        ServedModel(url)
    with pytest.raises(InputError, match="expected a gateway's address"):
        ServedModel("grpc://localhost:8001")
