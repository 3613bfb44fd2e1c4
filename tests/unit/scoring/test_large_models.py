"""A large model is not filled with numbers before its file is read, and is the same."""

import torch

from llmcfsr_merlin.scoring import checkpoint
from llmcfsr_merlin.scoring.checkpoint import load_model, save_model
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
