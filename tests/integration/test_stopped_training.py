"""A training that is stopped at any moment of writing a checkpoint goes on, to the weights of an unbroken one."""

import errno
import json
import os
import shutil

import pytest
import torch
import transformers.trainer

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage as prepare
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training import checkpoints
from llmcfsr_merlin.training import train_stage as train
from llmcfsr_merlin.training.checkpoints import COMPLETE, is_whole, whole_checkpoints
from llmcfsr_merlin.training.distillation import Distillation
from tests.worlds import attribute_world, write_ingest

SETTINGS = [
    "name=small", "model.scorers.network.hidden=16", "train.negatives=64", "train.batch_size=64",
    "prepare.max_length=10",
    "model.scorers.network.views=[collaborative]", "model.scorers.network.pca_init=false", "model.scorers.content=null",
    "model.scorers.transitions=null", "evaluate.baselines=[]", "train.epochs=3",
]  # fmt: skip


def config(*overrides: str) -> Config:
    return Config.load(None, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    run = tmp_path_factory.mktemp("prepared")
    write_ingest(run, *attribute_world())
    prepare.run(config(), run)
    return run


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory):
    """The weights after a training that nothing stopped, by settings."""
    known = {}

    def weights(*overrides: str) -> bytes:
        if overrides not in known:
            run = copy_of(prepared, tmp_path_factory.mktemp("unbroken"))
            train.run(config(*overrides), run)
            known[overrides] = (run / "train" / "model.safetensors").read_bytes()
        return known[overrides]

    return weights


def copy_of(prepared, folder):
    for stage in ("ingest", "prepare"):
        shutil.copytree(prepared / stage, folder / stage)
    return folder


class Killed(BaseException):
    """In place of SIGKILL: nothing here catches it."""


def failing(function, at: int, error: BaseException, half: bool = False):
    """The function, which fails at its call number `at`, after having done (half: after half of what it writes)."""
    calls = []

    def wrapped(*arguments, **settings):
        calls.append(1)
        result = function(*arguments, **settings)
        if len(calls) == at:
            if half:
                path = next(value for value in arguments if isinstance(value, str | os.PathLike))
                os.truncate(path, os.path.getsize(path) // 2)
            raise error
        return result

    return wrapped


FULL = OSError(errno.ENOSPC, "No space left on device")
UNWRITTEN = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
# torch.save writes the optimizer, the schedule and the random state of each of three checkpoints.
MOMENTS = {f"file {at} of torch": (torch, "save", at) for at in range(1, 10)}
MOMENTS |= {f"sealing {at}": (checkpoints, "sync", at) for at in (1, 5, 8, 12)}
MOMENTS |= {f"mark {at}": (checkpoints, "write_json", at) for at in (1, 2, 3)}
MOMENTS |= {f"rotation {at}": (transformers.trainer.shutil, "rmtree", at) for at in (1,)}


@pytest.mark.parametrize("at", range(1, 10))
def test_the_trainer_without_merlin_goes_on_too(at, prepared, unbroken, tmp_path, monkeypatch):
    plain = ("train.procedure=transformers",)
    run = copy_of(prepared, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch, "save", failing(torch.save, at, Killed(), half=True))
        train.run(config(*plain), run)
    train.run(config(*plain), run)
    assert (run / "train" / "model.safetensors").read_bytes() == unbroken(*plain)


@pytest.mark.parametrize(("module", "name", "at"), MOMENTS.values(), ids=MOMENTS)
def test_stopped_while_a_checkpoint_is_written(module, name, at, prepared, unbroken, tmp_path, monkeypatch):
    run = copy_of(prepared, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, failing(getattr(module, name), at, Killed(), half=name == "save"))
        train.run(config(), run)
    train.run(config(), run)
    assert (run / "train" / "model.safetensors").read_bytes() == unbroken()
    assert [entry["epoch"] for entry in json.loads((run / "train" / "history.json").read_text())] == [1, 2, 3]


@pytest.mark.parametrize("error", [FULL, UNWRITTEN], ids=str)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(error, prepared, unbroken, tmp_path, monkeypatch):
    run = copy_of(prepared, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="train: the disk is full"):
        patch.setattr(torch, "save", failing(torch.save, 5, error, half=True))
        train.run(config(), run)
    train.run(config(), run)
    assert (run / "train" / "model.safetensors").read_bytes() == unbroken()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", COMPLETE])
def test_a_damaged_checkpoint_is_removed_and_the_one_before_taken(file, prepared, unbroken, tmp_path, monkeypatch):
    run = copy_of(prepared, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "write_json", failing(checkpoints.write_json, 2, Killed()))
        train.run(config(), run)
    work = run / ".train.partial" / ".checkpoints"
    first, second = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert is_whole(first) and is_whole(second)
    raw = bytearray((second / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (second / file).write_bytes(raw)
    assert whole_checkpoints(work) == [first] and not second.exists()
    train.run(config(), run)
    assert (run / "train" / "model.safetensors").read_bytes() == unbroken()


def test_no_checkpoint_without_its_best_epoch(tmp_path):
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "elsewhere/checkpoint-5"}))
        checkpoints.seal_checkpoint(folder)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    for step in (5, 10):  # the run was moved
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "trainer_state.json").unlink()
    assert whole_checkpoints(tmp_path) == [] and not list(tmp_path.iterdir())


def test_one_that_had_stopped_early_does_not_train_on(prepared, unbroken, tmp_path, monkeypatch):
    rests = ("train.patience=2", "train.epochs=9", "train.learning_rate=1e-9", "train.schedule=constant")
    whole = unbroken(*rests)
    for at in (2, 3):  # after the second of three epochs, and after the last
        run = copy_of(prepared, tmp_path / str(at))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoints, "write_json", failing(checkpoints.write_json, at, Killed()))
            train.run(config(*rests), run)
        train.run(config(*rests), run)
        assert len(json.loads((run / "train" / "history.json").read_text())) == 3
        assert (run / "train" / "model.safetensors").read_bytes() == whole


def test_self_distillation_goes_on_with_the_states_it_had():
    one, other = (Distillation(torch.tensor([[1], [0]]), 2) for _ in range(2))
    one(torch.tensor([0, 1]), torch.ones(2, 2))
    other.restore(one.state())
    assert other.known.all() and (other.states == one.states).all()
