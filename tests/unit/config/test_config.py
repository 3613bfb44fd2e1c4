"""Settings: one tree, errors that name the key, presets applied to recipes."""

import json
import time
from pathlib import Path

import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.presets import presets
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.runtime.errors import InputError

HIDDEN = "model.scorers.network.hidden"


def test_a_baseline_is_applied_to_the_recipe_not_to_the_model():
    config = Config.load(None, ["train.epochs=3", f"{HIDDEN}=32"], "llmemb")
    assert (config.train.loss, config.train.align, config.model.network.hidden) == ("bce", 0.01, 32)
    baseline = config.with_model("sasrec")
    assert (baseline.train.loss, baseline.train.align) == ("sampled_softmax", 0)
    assert (baseline.train.epochs, baseline.model.network.hidden) == (3, 32)
    assert baseline.with_model("llmemb").train == config.train


def recorded(config, folder) -> Config:
    config.record(folder)
    return Config.recorded(folder)


def written(folder, tree) -> Path:
    (folder / "written.yaml").write_text(json.dumps(tree))
    return folder / "written.yaml"


OWN = {"train.epochs": 3, HIDDEN: 32}
OVERRIDES = ["train.epochs=3", f"{HIDDEN}=32"]
NETWORK = {"network": {"hidden": 32}}
EMB = Config.load(None, OVERRIDES, "llmemb").model.model_dump(mode="json")
# Ways to the same settings, with another model applied in between or not.
WAYS = {
    "a file": lambda folder: Config.load(folder / "own.yaml"),
    "a file that writes a model out": lambda folder: Config.load(
        written(folder, {"train": {"epochs": 3, "loss": "bce", "align": 0.01}, "model": EMB})
    ),
    "a file with a model": lambda folder: Config.load(folder / "own.yaml", model="llmemb"),
    "overrides": lambda _: Config.load(None, OVERRIDES, "llmemb"),
    "code": lambda _: Config(train=TrainConfig(epochs=3), model=ModelConfig(name="mine", scorers=NETWORK)),
    "code, then a model": lambda _: Config(train={"epochs": 3}, model={"scorers": NETWORK}).with_model("llmemb"),
    "code with a model's name": lambda _: Config(
        train=TrainConfig(epochs=3, patience=40, loss="bce", align=0.01), model=ModelConfig(**EMB)
    ),
    "with_settings": lambda _: Config().with_settings(OWN),
    "with_settings of a model": lambda _: Config.load(None, model="alphafuse").with_settings(OWN),
    "with_settings, then a model": lambda _: Config().with_settings(OWN).with_model("alphafuse").with_settings(OWN),
    "model_copy": lambda _: (config := Config.load(None, OVERRIDES[1:], model="llmemb")).model_copy(
        update={"train": config.train.model_copy(update={"epochs": 3})}
    ),
    "a run": lambda folder: recorded(Config(train={"epochs": 3}, model={"scorers": NETWORK}), folder),
    "a run of a model": lambda folder: recorded(Config.load(None, OVERRIDES, "llmemb"), folder),
    "a run of a model, of a run": lambda folder: recorded(
        recorded(Config.load(None, OVERRIDES, "llmemb"), folder).with_model("alphafuse"), folder
    ),
}


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_applied_to_settings_of_any_origin_as_to_a_file(way, name, tmp_path):
    (tmp_path / "own.yaml").write_text(f"train: {{epochs: 3}}\n{HIDDEN}: 32\n")
    expected = (
        Config.load(tmp_path / "own.yaml", model=name)
        if has_network(name)
        else Config.load(None, ["train.epochs=3"], name)
    )
    found = WAYS[way](tmp_path).with_model(name)
    assert found.model_dump() == expected.model_dump()
    assert found.with_model("sasrec").train == Config.load(None, ["train.epochs=3"], "sasrec").train


def has_network(name: str) -> bool:
    return Config.load(None, model=name).model.network is not None


def test_what_the_caller_gave_under_a_model_comes_back_when_the_model_goes(tmp_path):
    """The recipe's own loss is not the model's, although they are equal."""
    (tmp_path / "own.yaml").write_text("train: {loss: bce, align: 0.5}")
    config = Config.load(tmp_path / "own.yaml", model="llmemb")
    for same in (config, recorded(config, tmp_path), config.with_settings({"train.epochs": 2})):
        assert (same.train.align, same.with_model("gru4rec").train.align) == (0.01, 0.5)
        assert same.with_model("gru4rec").train.loss == "bce"


def test_a_model_file_of_ones_own_leaves_nothing_behind(tmp_path):
    (tmp_path / "best.yaml").write_text("model: {scorers: {network: {dropout: 0.7}}}\ntrain: {learning_rate: 0.1}\n")
    config = recorded(Config.load(None, OVERRIDES, tmp_path / "best.yaml"), tmp_path)
    assert config.model.network.dropout == 0.7
    assert config.with_model("sasrec").model_dump() == Config.load(None, OVERRIDES, "sasrec").model_dump()


def test_keys_of_version_0_1_are_read_with_one_warning(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("llmcfsr_merlin.config.layers._said", set())  # as in a new process
    old = ["model.hidden=32", "model.content_match=false", "model.transition_neighbours=7", "evaluate.ease_lambda=9"]
    config = Config.load(None, old)
    assert config.model.network.hidden == 32
    assert "transitions" in config.model.scorers and "content" not in config.model.scorers
    assert config.model.scorers["transitions"].neighbours == 7
    assert config.with_model("ease").model.scorers["ease"].regularisation == 9
    Config.load(None, old)
    (tmp_path / "r.yaml").write_text("model: {content_match: false, fuse_embedding: true}\n")
    Config.load(tmp_path / "r.yaml")
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "model.content_match" in line] == [
        "setting model.content_match=False is from an earlier version, use model.scorers.content=null"
    ]
    new = "model.scorers.network.fuse_embedding=true"
    assert f"setting model.fuse_embedding=True is from an earlier version, use {new}" in said


def test_whitening_of_the_stored_vectors_is_read_as_pca(tmp_path):
    assert Config.load(None, ["embed.reduction=whiten", "embed.dimension=8"]).embed.reduction == "pca"
    (tmp_path / "r.yaml").write_text("embed: {reduction: whiten}\n")
    assert Config.load(tmp_path / "r.yaml").embed.reduction == "pca"


def test_a_list_of_scorers_is_another_model_and_not_called_by_the_old_name(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {scorers: {network: {hidden: 16}}}\n")
    config = Config.load(tmp_path / "r.yaml")
    assert (config.model.name, list(config.model.scorers)) == ("custom", ["network"])
    (tmp_path / "r.yaml").write_text("model: {name: mine, scorers: {network: {}}}\ntrain: {loss: bce}\n")
    assert Config.load(tmp_path / "r.yaml").model.name == "mine"
    (tmp_path / "r.yaml").write_text("model.scorers.network.hidden: 16\n")
    assert list(Config.load(tmp_path / "r.yaml").model.scorers) == list(Config().model.scorers)


def test_a_scorer_is_one_line_of_yaml_and_null_removes_one(tmp_path):
    default = list(Config().model.scorers)
    config = Config.load(None, ["model.scorers.item_knn={}", "model.scorers.transitions=null"])
    assert list(config.model.scorers) == [*(name for name in default if name != "transitions"), "item_knn"]
    (tmp_path / "r.yaml").write_text("model.scorers.item_knn: {}\n")
    assert list(Config.load(tmp_path / "r.yaml").model.scorers) == [*default, "item_knn"]


def test_an_override_wins_over_the_model():
    assert Config.load(None, ["train.loss=full_softmax"], "llmemb").train.loss == "full_softmax"


@pytest.mark.parametrize("name", presets())
def test_model_files_hold_only_their_own_sections(name):
    assert Config.load(None, model=name).model.name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown key train.epoch .did you mean epochs"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, found 0"),
        ("train.epochs=many", "train.epochs: .* found 'many'"),
        ("train", "expected an override like train.epochs=3"),
        ("name.x=1", "unknown key|Input should be|is a value"),
        ("model.scorers.network.views=[semantic, collaborative]", "views must be"),
        ("model.scorers.network.hidden=63", "multiple of heads"),
        ("model.scorers.contents={}", "unknown scorer contents .did you mean content"),
        ("evaluate.baselines=[popularty]", "expected baselines out of alphafuse.*popularity"),
        ("train.lr=[", "not YAML"),
    ],
)
def test_bad_settings_are_named_in_one_line(override, message):
    with pytest.raises(InputError, match=message) as error:
        Config.load(None, ["name=x", override])
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_or_model_lists_what_there_is():
    with pytest.raises(InputError, match="found 'nothing'"):
        Config.load("nothing")
    with pytest.raises(InputError, match=r"llm_cfsr.*sasrec.*found 'nothing'"):
        Config.load(None, model="nothing")


def test_settings_are_recorded_in_the_run_and_read_again(tmp_path):
    config = Config.load(None, ["train.epochs=3"], "llmemb")
    config.record(tmp_path)
    assert Config.recorded(tmp_path).model_dump() == config.model_dump()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is not readable"):
        Config.recorded(tmp_path)
    with pytest.raises(InputError, match="expected a run directory"):
        Config.recorded(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["..", ".", "...", "", "a/b", "../a", "/a", "a\\b", "a\n", "a" * 300])
def test_a_name_is_one_component_of_a_path(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: {json.dumps(name)}\n")
    with pytest.raises(InputError, match="name: "):
        Config.load(recipe)
    with pytest.raises(InputError, match="name: "):
        Config.load(recipe, [f"name={json.dumps('ok')}", f"model.name={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["a", "a.b", "v1.0", "-a", "2018-08", "..a"])
def test_names_that_are_one_component(name):
    assert Config(name=name).name == name


def test_the_model_to_align_to_is_one_that_ships():
    for name in ("../../etc/x", "nothing"):
        with pytest.raises(InputError, match=r"train.align_to: .*expected a model preset out of .*sasrec"):
            Config.load(None, [f"train.align_to={name}"])


NINE = "\n".join(
    f"{name}: &{name} [{', '.join(['*' + previous] * 9)}]" for previous, name in zip("abcdefghi", "bcdefghij")
)
BOMBS = {
    "aliases of aliases": f"a: &a [x, x]\n{NINE}\n",
    "aliases of mappings": "a: &a {x: 1}\n"
    + "\n".join(
        f"{n}: &{n} {{{', '.join(f'k{k}: *{p}' for k in range(9))}}}" for p, n in zip("abcdefghi", "bcdefghij")
    ),
    "an alias of itself": "a: &a [*a]\n",
    "deep lists": "[" * 100_000,
    "a large file": "x" * (2 << 20),
    "no text": b"\x80\x81\xff",
    "a date that cannot be": "name: 2018-02-31\n",
    "an integer without end": "name: " + "9" * 10_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_yaml_bomb_ends_early(text, tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    with pytest.raises(InputError) as raised:
        Config.load(path)
    assert time.process_time() - start < 5 and "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    if isinstance(text, str) and "&" in text:
        with pytest.raises(InputError):
            Config.load(None, [f"data={{{text.strip()}}}" if ":" in text else f"data={text}"])


def test_aliases_that_save_typing_are_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: &name shop\ndata: {columns: &c {user: u}}\nmodel: {name: *name}\n")
    assert Config.load(path).model.name == "shop"


def test_a_record_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="not written by this project"):
        Config().record(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'
    (tmp_path / "config.json").unlink()
    for _ in range(2):
        Config().record(tmp_path)
