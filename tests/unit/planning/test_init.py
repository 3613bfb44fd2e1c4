"""`llmcfsr init` decides what the files show, says why, and leaves the rest as a commented choice."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import yaml

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import INTERACTIONS
from llmcfsr_merlin.dataset.raw.ingest import ingest
from llmcfsr_merlin.planning.drafts import draft_recipe

DAY = 86_400


def shop_log(users=60, items=20, length=8, seed=0) -> pd.DataFrame:
    """Every user takes a random walk over the items; times are distinct."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"c{user}", f"sku-{rng.integers(items)}", 1_500_000_000 + int(rng.integers(300 * DAY)))
        for user in range(users)
        for _ in range(length)
    ]
    return pd.DataFrame(rows, columns=["customer", "sku", "bought_at"])


def walks(different=9, step=1) -> pd.DataFrame:
    """Thirty users take nine items in a row, of so many different ones, so many seconds apart."""
    rows = [
        (f"u{user}", f"i{number % different}", 1_500_000_000 + user * DAY + step * number)
        for user in range(30)
        for number in range(9)
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


def drafted(tmp_path, frame=None, items=None, name="log.csv", given=()):
    """The draft of a log (a frame, or text) and its settings as `run` would read them."""
    path = tmp_path / name
    if isinstance(frame, str):
        path.write_text(frame)
    elif name.endswith(".parquet"):
        frame.to_parquet(path)
    elif ".json" in name:
        data = "\n".join(map(json.dumps, frame.to_dict("records"))).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    else:
        frame.to_csv(path, index=False)
    if items is not None:
        items.to_json(tmp_path / "items.jsonl", orient="records", lines=True)
    draft = draft_recipe("shop", str(path), None if items is None else str(tmp_path / "items.jsonl"), given)
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(draft.text)
    return draft, Config.load(recipe)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.jsonl", "log.jsonl.gz"])
def test_any_format_with_other_names(tmp_path, name):
    log = shop_log()
    log["quantity"] = 1
    log["unit_price"] = 2.5
    draft, config = drafted(tmp_path, log, name=name)
    columns = config.data.columns
    assert (columns.user, columns.item, columns.time) == ("customer", "sku", "bought_at")
    assert config.data.time_unit == "s" and not draft.open
    assert ingest(config.data, tmp_path / "out")["interactions"] == len(log)


def test_times_as_dates_and_in_milliseconds(tmp_path):
    log = shop_log()
    log["bought_at"] = pd.to_datetime(log["bought_at"], unit="s").dt.strftime("%Y-%m-%d %H:%M:%S")
    assert drafted(tmp_path, log)[1].data.time_unit is None
    log = shop_log()
    log["bought_at"] *= 1000
    _, config = drafted(tmp_path, log)
    assert config.data.time_unit == "ms" and config.data.columns.time == "bought_at"


def test_a_time_is_found_by_its_values(tmp_path):
    _, config = drafted(tmp_path, shop_log().rename(columns={"bought_at": "x7"}))
    assert config.data.columns.time == "x7"


def test_a_file_without_a_header(tmp_path):
    text = shop_log().to_csv(index=False, header=False)
    _, config = drafted(tmp_path, text)
    assert config.data.columns.names == ("user_id", "item_id", "timestamp")
    assert ingest(config.data, tmp_path / "out")["interactions"] == 480


def test_what_is_not_decided_stands_as_a_commented_choice(tmp_path):
    log = shop_log().rename(columns={"customer": "alpha", "sku": "beta"})
    draft, config = drafted(tmp_path, log)
    assert len(draft.open) == 2 and "NOT DECIDED: which column is the user?" in draft.text
    choices = [line.strip() for line in draft.text.splitlines() if line.strip().startswith("# user: ")]
    assert [choice.split("  #")[0] for choice in choices] == ["# user: alpha", "# user: beta"]
    assert config.data.columns.user == "user_id"  # the default: `check` and `run` say that it is not there
    recipe = tmp_path / "shop.yaml"
    text = recipe.read_text().replace("# user: alpha", "user: alpha").replace("# item: beta", "item: beta")
    recipe.write_text(text)
    assert ingest(Config.load(recipe).data, tmp_path / "out")["users"] == 60


def test_what_is_given_is_not_guessed(tmp_path):
    log = shop_log().rename(columns={"customer": "alpha", "sku": "beta"})
    given = ("data.columns.user=alpha", "data.columns.item=beta", "train.epochs=3")
    draft, config = drafted(tmp_path, log, given=given)
    assert not draft.open and config.data.columns.user == "alpha" and config.train.epochs == 3
    assert "users, 20 items" in draft.text


def test_days_that_can_be_read_in_two_ways_are_left_open(tmp_path):
    log = shop_log()
    log["bought_at"] = "04/03/2019"
    draft, _ = drafted(tmp_path, log)
    assert len(draft.open) == 1 and "data.time_format" in draft.open[0]
    assert "# NOT DECIDED: the log cannot be read by these settings" in draft.text


def test_two_times_are_left_open(tmp_path):
    log = shop_log().rename(columns={"bought_at": "x"})
    log["y"] = log["x"] + 5
    draft, config = drafted(tmp_path, log)
    assert config.data.columns.time is None and "x, y, or none" in draft.open[0]


def test_the_items_id_is_the_column_whose_values_are_in_the_log(tmp_path):
    items = pd.DataFrame({"number": range(20), "code": [f"sku-{n}" for n in range(20)], "title": ["a pot"] * 20})
    _, config = drafted(tmp_path, shop_log(), items)
    assert config.data.item_columns.item == "code" and config.embed.template == "generic"
    assert config.model.name == "llm_cfsr"


def test_without_texts_the_model_is_one_of_ids(tmp_path):
    _, config = drafted(tmp_path, shop_log())
    assert not config.model.reads and next(iter(config.model.scorers)) == "network"


def test_raw_amazon_files_keep_their_format(tmp_path):
    log = shop_log().rename(columns={"customer": "reviewerID", "sku": "asin", "bought_at": "unixReviewTime"})
    log["overall"] = 5.0
    _, config = drafted(tmp_path, log, name="reviews.json")
    assert config.data.format == "amazon" and config.embed.template == "generic"


def test_history_is_kept_if_people_return_and_masked_if_nobody_does(tmp_path):
    assert not drafted(tmp_path, walks(different=5))[1].evaluate.exclude_history
    assert drafted(tmp_path, walks())[1].evaluate.exclude_history


def test_ties_sorted_by_item_are_shuffled(tmp_path):
    draft, config = drafted(tmp_path, walks(step=0))
    assert config.prepare.ties == "shuffle" and "sorted by item" in draft.text


def test_a_log_of_days_in_which_most_last_steps_are_tied_is_shuffled(tmp_path):
    log = shop_log()
    log["bought_at"] = 1_500_000_000 // DAY * DAY + DAY * (log.index % 8 // 6)
    draft, config = drafted(tmp_path, log)
    assert config.prepare.ties == "shuffle" and "the times are days" in draft.text


def test_long_histories_get_a_longer_model(tmp_path):
    draft, config = drafted(tmp_path, shop_log(users=40, items=30, length=80))
    assert config.prepare.max_length == 100 and "50: 3" in draft.text  # of 78 training items, 51 are read


def test_rows_written_twice_are_dropped(tmp_path):
    log = shop_log()
    _, config = drafted(tmp_path, pd.concat([log, log.iloc[:50]]))
    assert config.data.duplicates == "drop"


def test_names_that_yaml_would_misread(tmp_path):
    log = shop_log().rename(columns={"customer": "user: no #1", "sku": "item"})
    draft, config = drafted(tmp_path, log)
    assert config.data.columns.user == "user: no #1"
    assert yaml.safe_load(draft.text)["data"]["columns"]["item"] == "item"


def test_the_verb_writes_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shop_log().to_csv("log.csv", index=False)
    assert main(["init", "log.csv"]) == 0
    assert "wrote shop.yaml" in capsys.readouterr().out
    before = (tmp_path / "shop.yaml").read_text()
    assert main(["init", "log.csv"]) == 1
    assert "expected no file at shop.yaml" in capsys.readouterr().err
    assert (tmp_path / "shop.yaml").read_text() == before
    assert main(["init", "nothing.csv", "--out", "other.yaml"]) == 1 and not (tmp_path / "other.yaml").exists()
    assert Config.load("shop.yaml").name == "shop" and INTERACTIONS not in [path.name for path in tmp_path.iterdir()]
