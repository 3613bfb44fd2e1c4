"""Every setting says what it means, and what is shown of the settings is what they are."""

import json

import pytest
import yaml

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.config.describe import described, json_schema
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.scorer_settings import SCORERS
from llmcfsr_merlin.config.section import Section


def undescribed(section: type[Section], path: str) -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            assert field.annotation.__doc__
            found += undescribed(field.annotation, f"{path}{name}.")
        elif not field.description:
            found.append(path + name)
    return found


def test_every_setting_has_a_description():
    assert undescribed(Config, "") == []
    assert [path for name, kind in SCORERS.items() for path in undescribed(kind, f"{name}.")] == []


@pytest.mark.parametrize("model", [None, "popularity", "ease"])
def test_what_is_explained_reads_as_the_same_settings(model, tmp_path):
    config = Config.load("beauty", ["data.null_values=['#N/A', 'a: b']"], model)
    text = described(config)
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    assert "  # Longest history that the model reads; older items are dropped.\n  max_length: 50\n" in text
    assert max(map(len, text.splitlines())) <= 120
    (tmp_path / "all.yaml").write_text(text)
    assert Config.load(tmp_path / "all.yaml").model_dump() == config.model_dump()


def test_the_schema_knows_the_scorers_and_refuses_unknown_keys():
    schema = json.loads(json_schema(Config))
    train = schema["$defs"]["TrainConfig"]
    assert train["properties"]["epochs"]["description"] and train["additionalProperties"] is False
    network = schema["$defs"]["ModelConfig"]["properties"]["scorers"]["properties"]["network"]["anyOf"][0]
    assert network["properties"]["dropout"]["exclusiveMaximum"] == 1


@pytest.mark.parametrize("options", [["demo"], [], ["demo", "--explain"], ["--explain", "--model", "sasrec"]])
def test_the_command_shows_settings(options, capsys):
    assert main(["config", *options]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["name"] == ("demo" if "demo" in options else "run") and shown["train"]["patience"] == 5


def test_the_command_writes_the_schema(capsys):
    assert main(["config", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["train"]
