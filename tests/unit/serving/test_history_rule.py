"""What a question that says nothing of EXCLUDE_SEEN means is the model's own: the rule that it was trained by."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmcfsr_merlin import Config, Recommender
from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.dataset.names import KEPT, MASKED, MODEL_CONFIG, MODEL_REPOSITORY
from llmcfsr_merlin.explore.explorer import Explorer
from llmcfsr_merlin.pipeline import run_stages
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.manifest import seal
from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.serving.gateway.tensors import Found
from llmcfsr_merlin.serving.item_table import ItemTable
from llmcfsr_merlin.serving.new_items import add_items
from llmcfsr_merlin.serving.repository import export, newest_items
from llmcfsr_merlin.serving.request import Limits
from llmcfsr_merlin.serving.steps import Decode, Encode, Rank, Recommend
from tests.served import DIMENSION, IDS, write_model

RULES = (MASKED, KEPT, None)
SEEN = ["B000", "B001", "B002"]
HISTORIES = [SEEN, ["zzz", "B010"], [], IDS]
EVERY = 60


@pytest.fixture(scope="module", params=RULES)
def trained(request, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "train", history_rule=request.param, transition_neighbours=5)


def rule_of(trained: Path) -> str | None:
    return json.loads((trained / MODEL_CONFIG).read_text()).get("history_rule")


def asked(**filters: np.ndarray) -> list[dict]:
    """A request per history, one of them with all."""
    width = max(map(len, HISTORIES))
    history = np.array([[raw.encode() for raw in row] + [b""] * (width - len(row)) for row in HISTORIES], object)
    k = np.full((len(HISTORIES), 1), EVERY, np.int32)
    whole = {"HISTORY": history, "TOP_K": k, **filters}
    return [whole, *({name: value[[row]] for name, value in whole.items()} for row in range(len(HISTORIES)))]


def in_turn(trained: Path, limits: Limits):
    encode, rank, decode = (step(trained, limits) for step in (Encode, Rank, Decode))

    def answer(requests: list[dict]) -> list[dict]:
        encoded = encode(requests)
        return decode([{**ranked, "K": one["K"]} for ranked, one in zip(rank(encoded), encoded)])

    return answer


STEPS = {
    "ensemble": in_turn,
    "merged": lambda trained, limits: Recommend(trained, limits),
}


@pytest.mark.parametrize("layout", STEPS)
@pytest.mark.parametrize("shortlist", [0, 20])
def test_steps_answer_as_the_library_whether_or_not_a_request_says_what_to_leave_out(trained, layout, shortlist):
    answer = STEPS[layout](trained, Limits(EVERY, shortlist))
    library = Recommender.load(trained, shortlist=shortlist)
    for said in (None, True, False):
        wanted = library.answer(HISTORIES, EVERY, exclude_seen=said).items
        leaves_out = said if said is not None else rule_of(trained) == MASKED
        assert (set(SEEN) & set(wanted[0]) == set()) is leaves_out
        assert (wanted[3] == None).all() == leaves_out, "all were seen"  # noqa: E711 - elementwise
        filters = {} if said is None else {"EXCLUDE_SEEN": np.full((len(HISTORIES), 1), said)}
        together, *alone = answer(asked(**filters))
        for row, items in enumerate(wanted):
            expected = [b"" if raw is None else raw.encode() for raw in items]
            assert together["ITEMS"][row].tolist() == alone[row]["ITEMS"][0].tolist() == expected


def test_shards_follow_it_too(trained):
    from llmcfsr_merlin.serving.gateway.catalogue_shards import merged

    library = Recommender.load(trained)
    parts = [Recommend(trained, Limits(EVERY, shard=(n, 3)))(asked()[:1])[0] for n in (1, 2, 3)]
    for row, wanted in enumerate(library.answer(HISTORIES, EVERY).items):
        found = []
        for part in parts:
            items = [raw.decode() for raw in part["ITEMS"][row] if raw]
            found.append(Found(items, part["SCORES"][row][: len(items)], 0, False, True, 1, None))
        assert merged(found, EVERY).items == [raw for raw in wanted if raw is not None]


def test_who_answers_while_no_server_does_knows_it(trained, tmp_path):
    export(trained, tmp_path / "repo", ServeConfig())
    assert ItemTable(newest_items(tmp_path / "repo")).excludes_seen is (rule_of(trained) == MASKED)
    pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
    from tests.gateways import asked as gateway
    from tests.gateways import run

    async def work():
        async with gateway(tmp_path / "repo", [1]) as client:
            for said in ({}, {"exclude_seen": True}, {"exclude_seen": False}, {"exclude_seen": None}):
                answer = (await client.post("/recommend", json={"history": SEEN, "k": 9, **said})).json()
                masked = said.get("exclude_seen", None)
                masked = rule_of(trained) == MASKED if masked is None else masked
                assert answer["degraded"] and ("B000" not in [item["id"] for item in answer["items"]]) is masked

    run(work)


def test_it_stays_with_a_model_that_is_saved_or_grows_and_moves_neither_scores_nor_reasons(trained, tmp_path):
    library = Recommender.load(trained)
    library.save(tmp_path / "saved")
    add_items(trained, tmp_path / "grown", [{"item_id": "N"}], lambda _: np.ones((1, DIMENSION), np.float32))
    for folder in ("saved", "grown"):
        assert load_model(tmp_path / folder).history_rule == rule_of(trained)
    kept = library.answer([SEEN], EVERY, exclude_seen=False)
    told = library.answer([SEEN], EVERY)
    scores = dict(zip(kept.items[0], kept.scores[0]))
    for item, score in zip(told.items[0], told.scores[0]):
        assert item is None or score == pytest.approx(scores[item], abs=1e-6)
    assert all(library.explain(SEEN, SEEN)), "an item of the history has reasons too"


def test_another_rule_is_refused_in_one_line(tmp_path):
    trained = write_model(tmp_path / "train", history_rule=MASKED)
    description = json.loads((trained / MODEL_CONFIG).read_text()) | {"history_rule": "hidden"}
    (trained / MODEL_CONFIG).write_text(json.dumps(description))
    with pytest.raises(InputError, match="history_rule 'hidden', expected masked or kept"):
        load_model(trained)


@pytest.mark.parametrize("masked", [True, False])
def test_the_recipes_setting_reaches_what_answers(masked, tmp_path, capsys):
    """evaluate.exclude_history, through every stage."""
    settings = ["data.synthetic_users=60", "data.synthetic_items=40", f"evaluate.exclude_history={masked}"]
    config = Config.load("demo", [*settings, "evaluate.baselines=[]"], "popularity")
    run_stages(config, tmp_path, ("ingest", "prepare", "train", "export"))
    library = Recommender.load(tmp_path)
    history = library.vocabulary.ids[:3].tolist()  # the most popular ones
    assert (history[0] not in library.recommend([history], k=5)["item_id"].tolist()) is masked
    encode = Encode(tmp_path / "export" / MODEL_REPOSITORY / "encode" / "1" / "bundle", Limits())
    (codes,) = encode([{"HISTORY": np.array([[raw.encode() for raw in history]], object)}])
    assert codes["BLOCK"].any() == masked
    assert Explorer([tmp_path]).session().exclude_seen is masked
    for flags, left_out in (((), masked), (("--exclude-seen",), True), (("--no-exclude-seen",), False)):
        capsys.readouterr()
        assert main(["recommend", "--run", str(tmp_path), "-k", "5", "--json", *flags, *history]) == 0
        items = [item["item_id"] for item in json.loads(capsys.readouterr().out)["items"]]
        assert (history[0] not in items) is left_out


def test_a_recipe_that_leaves_histories_out_is_warned_of_a_model_without_the_record(tmp_path, caplog):
    from llmcfsr_merlin.serving import export_stage

    for rule in (None, MASKED):
        run = tmp_path / str(rule)
        write_model(run / "train", history_rule=rule)
        seal(run / "train", "train", "key", {})
        caplog.clear()
        export_stage.run(Config.load(None, ["evaluate.exclude_history=true"]), run)
        told = [record.getMessage() for record in caplog.records if "EXCLUDE_SEEN" in record.getMessage()]
        assert len(told) == (rule is None) and all("rewrite it" in line for line in told)
