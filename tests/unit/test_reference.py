"""The reference pages of the documentation hold every setting and every command."""

import re

from llmcfsr_merlin.cli.command_reference import command_reference
from llmcfsr_merlin.cli.main import VERBS
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.scorer_settings import SCORERS
from llmcfsr_merlin.config.section import Section
from llmcfsr_merlin.config.settings_reference import settings_reference


def paths(section: type[Section], prefix: str) -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += paths(field.annotation, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_every_setting_is_in_the_settings_reference():
    page = settings_reference()
    wanted = paths(Config, "") + [p for name, kind in SCORERS.items() for p in paths(kind, f"model.scorers.{name}.")]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == sorted(wanted)
    assert "| `train.epochs` | integer, ≥ 1 | `16` | Maximum number of epochs" in page
    assert "None" not in re.sub(r"`[^`]*`", "", page), "YAML has null"
    assert {line.count(" | ") for line in page.splitlines() if line.startswith("| `")} == {3}


def test_every_command_is_in_the_command_reference():
    page = command_reference()
    assert re.findall(r"^## llmcfsr (.+)$", page, re.MULTILINE) == [verb.name for verb in VERBS]
    assert "| `--user ID` | use the history of this user of --run |" in page
    assert not re.search(r"\| `[^`]+` \| +\|", page), "an argument without help"
