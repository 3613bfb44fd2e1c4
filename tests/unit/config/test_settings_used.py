"""No dead settings: each is read by the code and appears in a recipe, a test, a benchmark or a page of the docs; and
settings that no other test sets do what they say."""

import re
from pathlib import Path

import pytest
import torch

from llmcfsr_merlin.config.section import Section
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.dataset.raw.synthetic import write_amazon
from llmcfsr_merlin.serving.repository import export
from tests.served import write_model

ROOT = Path(__file__).resolve().parents[3]


def _sections(section: type[Section] = Section) -> set[type[Section]]:
    import llmcfsr_merlin.config.schema  # noqa: F401 - defines them all

    found = {below for below in section.__subclasses__() if below.__module__.startswith("llmcfsr_merlin.config")}
    return found.union(*(_sections(below) for below in found))


def _text(*patterns: str) -> str:
    paths = [path for pattern in patterns for path in ROOT.glob(pattern) if path != Path(__file__)]
    return "\n".join(path.read_text() for path in paths)


FOLDERS = ("cli", "dataset", "evaluation", "runtime", "scoring", "serving", "text", "training", "update")
CODE = _text(
    *(f"llmcfsr_merlin/{of}/**/*.py" for of in FOLDERS), "llmcfsr_merlin/*.py", "llmcfsr_merlin/config/load.py"
)
USED = _text("pipelines/**/*.yaml", "tests/**/*.py", "benchmarks/**/*.py", "benchmarks/*.yaml", "docs/**/*.md", "*.md")
FIELDS = sorted({(section.__name__, name) for section in _sections() for name in section.model_fields})
HERE = {"synthetic_seed", "max_queue_delay_us", "distil_users", "weight_decay", "warmup"}  # set below


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_a_setting_is_read_and_used(section, name):
    if section not in ("Settings",):  # the sections themselves
        assert re.search(rf"\b{name}\b", CODE), "nothing reads it"
    assert name in HERE or re.search(rf"\b{name}\b", USED), "no recipe, test, benchmark or page uses it"


def test_the_synthetic_shop_depends_on_its_seed(tmp_path):
    one, same, other = (write_amazon(tmp_path / name, 30, 20, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one[0].read_bytes() == same[0].read_bytes() != other[0].read_bytes()


def test_the_queue_delay_is_tritons(tmp_path):
    serve = ServeConfig(layout="ensemble", max_queue_delay_us=7)  # the merged model's requests are not batched
    export(write_model(tmp_path / "train"), tmp_path / "repo", serve)
    texts = [path.read_text() for path in (tmp_path / "repo").glob("*/config.pbtxt")]
    assert any(re.search(r"max_queue_delay_microseconds:\s*7\b", text) for text in texts)


def test_weight_decay_reaches_the_optimiser(tmp_path):
    from llmcfsr_merlin.training.trainer import trainer_arguments

    assert trainer_arguments(TrainConfig(batch_size=8, weight_decay=0.3), tmp_path, 10, 50)["weight_decay"] == 0.3


def test_the_tuning_rate_rises_for_its_warm_up_and_falls_to_zero():
    from llmcfsr_merlin.text.tuning.tune import _rate

    rates = [_rate(step, 20, TuneConfig(warmup=0.25).warmup) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[5] == 1 and rates[20] == 0
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_so_many_similar_users_are_distilled_from():
    from llmcfsr_merlin.training.distillation import similar_users

    torch.manual_seed(0)
    assert similar_users(torch.randn(9, 4), TrainConfig(distil_users=3).distil_users).shape == (9, 3)
