"""Every recipe that ships is valid, and says nothing that is only a default."""

import pytest
import yaml

from llmcfsr_merlin.config.load import Config, recipes
from llmcfsr_merlin.runtime.layout import resource

RECIPES = recipes()


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMCFSR_DATA", str(tmp_path))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_validates(name, tmp_path):
    config = Config.load(name)
    assert not any("$" in path for path in (*config.data.interactions, *config.data.items)), "undocumented variable"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_named_like_its_file(name):
    """`name` is also the default run directory: two recipes must not share one."""
    assert Config.load(name).name == name


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_begins_with_what_it_is_for(name):
    assert (resource("pipelines") / f"{name}.yaml").read_text().startswith("#")


@pytest.mark.parametrize("name", RECIPES)
def test_a_typo_in_a_recipe_is_named(name, tmp_path):
    tree = yaml.safe_load((resource("pipelines") / f"{name}.yaml").read_text())
    tree.setdefault("train", {})["epoch"] = 3
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"train\.epoch.*did you mean epochs"):
        Config.load(broken)


def test_the_recipes_of_the_readme_are_there():
    if not RECIPES:
        pytest.skip("no recipe has landed yet")
    assert {"demo", "yelp", "fashion", "beauty"} <= set(RECIPES)


def test_a_folder_of_the_same_name_hides_no_recipe(monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Config.load("demo").name == "demo"
