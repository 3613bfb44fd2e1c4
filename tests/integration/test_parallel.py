"""Data-parallel training: two processes on the CPU (gloo) against one."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage as prepare
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training import fit as training
from tests.worlds import attribute_world, write_ingest

# No chance and one step an epoch: what one process computes of all users, two compute of a half each.
SMALL = [
    "name=small", "train.device=cpu", "prepare.max_length=10", "model.scorers.network.hidden=16",
    "model.scorers.network.dropout=0", "model.scorers.transitions.neighbours=5",
    "train.loss=full_softmax", "train.batch_size=1000", "train.epochs=4", "train.patience=9",
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    run = tmp_path_factory.mktemp("learnable")
    write_ingest(run, *attribute_world())
    prepare.run(Config.load(None, SMALL, "sasrec"), run)
    return run / "prepare"


def trained(prepared, work, *overrides: str):
    """The network, its history and what was said."""
    config, said = Config.load(None, [*SMALL, *overrides], "sasrec"), []
    model, history = training.fit_model(
        config.model, config.train, Dataset(prepared, max_length=10), work, report=said.append
    )
    return model.scorers["network"].network, history, said


def rows_of(prepared) -> list[list[int]]:
    files = (prepared / "train").glob("*.parquet")
    return [row for file in files for row in pq.read_table(file)["item_id"].to_pylist()]


def shares(work) -> list[list[list[int]]]:
    return [pq.read_table(file)["item_id"].to_pylist() for file in sorted(work.glob("share-*.parquet"))]


def test_two_processes_train_what_one_trains(prepared, tmp_path):
    even = tmp_path / "prepared"
    shutil.copytree(prepared, even)
    (file,) = (even / "train").glob("*.parquet")
    table = pq.read_table(file)
    # Of equal length and number: else the mean of two means is not the mean.
    rows = [row[:3] for row in rows_of(prepared) if len(row) >= 3]
    rows = rows[: len(rows) // 2 * 2]
    pq.write_table(pa.table({"item_id": rows}).cast(pa.schema([table.schema.field("item_id")])), file)
    alone, one, _ = trained(even, tmp_path / "1")
    together, two, said = trained(even, tmp_path / "2", "train.processes=2")
    assert "2 processes, 500 sequences per step in each" in said
    assert sum(line.startswith("epoch ") for line in said) == 4, "the processes' lines come to the caller"
    halves = shares(tmp_path / "2")
    assert len(halves[0]) == len(halves[1]) > 50
    assert sorted(halves[0] + halves[1]) == sorted(rows)
    assert [epoch["epoch"] for epoch in two] == [1, 2, 3, 4]
    assert two[-1]["ndcg@10"] == pytest.approx(one[-1]["ndcg@10"], abs=0.02)
    start, _, _ = trained(even, tmp_path / "0", "train.learning_rate=1e-12")
    # Adam turns the smallest gradients' rounding into steps, hence all weights together.
    at_start, by_one, by_two = (
        torch.cat([weight.detach().flatten() for weight in network.parameters()])
        for network in (start, alone, together)
    )
    assert (by_two - by_one).norm() < 0.02 * (by_one - at_start).norm()


def test_uneven_shares_end_together_and_training_goes_on(prepared, tmp_path):
    odd = tmp_path / "prepared"
    shutil.copytree(prepared, odd)
    (file,) = (odd / "train").glob("*.parquet")
    pq.write_table(pq.read_table(file).slice(1), file)
    whole = rows_of(odd)
    settings = ("train.processes=3", "train.batch_size=48", "train.schedule=constant")
    _, history, _ = trained(odd, tmp_path, *settings, "train.epochs=2")
    parts = shares(tmp_path)
    assert len(whole) % 3 and len({len(part) for part in parts}) == 1
    assert {tuple(row) for part in parts for row in part} == {tuple(row) for row in whole}
    kept = [sorted(int(path.name[11:]) for path in (tmp_path / f"process-{r}").glob("checkpoint-*")) for r in range(3)]
    assert kept[0] and kept == [kept[0]] * 3
    _, longer, _ = trained(odd, tmp_path, *settings, "train.epochs=4")
    assert longer[:2] == history, "the first two epochs were not trained again"
    assert len(longer) == 4


def test_a_refusal_in_a_process_is_one_clear_line(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "available_memory", lambda: 1 << 60)
    with pytest.raises(InputError, match=r"train\.processes: expected at most one per training user"):
        trained(prepared, tmp_path / "a", "train.processes=100000")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "refused.txt").write_text("of an earlier try")
    for processes in (1, 2):
        with pytest.raises(InputError, match="finite loss"):
            trained(
                prepared, tmp_path / f"{processes}", f"train.processes={processes}", "train.learning_rate=1e30",
                "train.schedule=constant",
            )  # fmt: skip


def test_a_process_that_is_killed_is_one_clear_line(prepared, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise torch.multiprocessing.ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 1, -9)

    monkeypatch.setattr(torch.multiprocessing, "spawn", killed)
    with pytest.raises(InputError, match=r"SIGKILL.*lower train\.processes"):
        trained(prepared, tmp_path, "train.processes=2")
