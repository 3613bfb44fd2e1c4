"""A large model is not filled with numbers before its file is read, and is the same."""

from pathlib import Path

import pytest
import torch

from llmcfsr_merlin.scoring import checkpoint
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
from llmcfsr_merlin.scoring.search import bound_tables
from tests.models import model_config, random_model


def test_what_is_not_filled_is_read(tmp_path, monkeypatch):
    model = random_model(model_config(), 60, 8, lexical=None)
    save_model(model, tmp_path, "hash")
    wanted = load_model(tmp_path)
    monkeypatch.setattr(checkpoint, "_LARGE", 50)
    found = load_model(tmp_path)
    for (name, one), (_, other) in zip(checkpoint.state(found).items(), checkpoint.state(wanted).items(), strict=True):
        assert torch.equal(one, other), name
    log_share = found.scorers["network"].network.items.log_share  # what no file holds
    assert torch.equal(log_share, torch.zeros(60))
    histories = torch.tensor([[5, 9, 30], [7, 0, 0]])
    assert torch.equal(found.prepare().scores(histories), wanted.prepare().scores(histories))


def test_zeros_of_every_type_are_zeros(monkeypatch):
    monkeypatch.setattr(checkpoint, "_LARGE", 5)
    for dtype in (None, torch.float64, torch.bfloat16, torch.int32, torch.bool):
        given = {} if dtype is None else {"dtype": dtype}
        with checkpoint._Unfilled():
            found = torch.zeros(3, 2, **given), torch.zeros((3, 2), **given)
        for tensor in found:
            assert tensor.dtype == (dtype or torch.float32) and torch.equal(tensor, torch.zeros(3, 2, **given))


def advised(tensor: torch.Tensor) -> bool:
    """Whether the system knows that the middle of a tensor is read at random."""
    address, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        span, _, rest = line.partition(" ")
        if "-" in span:
            first, last = (int(end, 16) for end in span.split("-"))
            inside = first <= address < last
        elif inside and span == "VmFlags:":
            return "rr" in rest.split()
    raise AssertionError(f"no memory at {address:x}")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say how memory is read")
def test_a_shortlist_reads_rows_of_files_and_not_what_stands_around_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bound_tables, "_LARGE", 1 << 14)
    model = random_model(model_config(lexical_share=0.3), 3000, 8, lexical=16)
    save_model(model, tmp_path, "hash")
    bound_tables.write_tables(model.prepare(), tmp_path)
    found = load_model(tmp_path)
    assert bound_tables.take_tables(found, tmp_path, by_row=False) and not advised(found.vectors.semantic)
    assert bound_tables.take_tables(found, tmp_path)
    network, content = (found.scorers[name] for name in ("network", "content"))
    read_singly = (network.catalogue, content.rounded.rest, found.vectors.semantic, found.vectors.lexical)
    assert [advised(tensor) for tensor in (*read_singly, network.rounded.head)] == [True] * 4 + [False]
