"""Pre-training on reversed sequences (ASReP, Liu et al., SIGIR 2021, arXiv 2105.00522), on training items alone."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from llmcfsr_merlin.dataset.names import ITEM, PAD
from llmcfsr_merlin.dataset.user_histories import lists_of
from llmcfsr_merlin.runtime.files import save_tensors, whole
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.prior_items import with_prior_items
from llmcfsr_merlin.training.checkpoints import whole_checkpoints
from llmcfsr_merlin.training.memory import ranked_users
from llmcfsr_merlin.training.objective import Auxiliary
from llmcfsr_merlin.training.procedures import Fit, Training

_WEIGHTS, _EXTENDED = "backwards.safetensors", "extended.parquet"
_SCHEMA = pa.schema([(ITEM, pa.list_(pa.int64()))])


def pretrain_reversed(training: Training, network: DualViewNetwork, fit: Fit) -> Training:
    """Train network.backwards on the reversed training rows, start the network from its weights, and return a training
    on the rows with prior items (scoring/network/prior_items.py).

    The oldest item of each row chooses the epoch. The published code reverses whole sequences without their two oldest
    items, and so trains on validation and test items. What is finished is not repeated by a training that was
    interrupted.
    """
    backwards, device = network.backwards, choose_device(training.settings.device)
    assert backwards is not None, "fit_model refuses it"
    work = training.work / "reversed"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / _WEIGHTS).is_file():
        files = reversed_files(training.files["train"], work, training.settings.validation_users)
        settings = training.settings.model_copy(update={"processes": 1})
        checkpoints = whole_checkpoints(work)
        training.report("pre-training on reversed sequences")
        fit(
            backwards.requires_grad_(True), training._replace(settings=settings, files=files, work=work), Auxiliary(),
            str(checkpoints[-1]) if checkpoints else None,
        )  # fmt: skip
        save_tensors({name: weight.cpu() for name, weight in backwards.state_dict().items()}, work / _WEIGHTS)
    backwards.load_state_dict(load_file(work / _WEIGHTS))
    backwards.requires_grad_(False).eval()
    network.to(device).load_state_dict(backwards.state_dict(), strict=False)
    if not (work / _EXTENDED).is_file():
        rows = extended(network, _rows(training.files["train"]))
        _write(rows, work / _EXTENDED)
    return training._replace(files=training.files | {"train": [str(work / _EXTENDED)]})


def reversed_files(files: list[str], work: Path, most: int) -> dict[str, list[str]]:
    """Training rows reversed: `train` without each row's oldest item, `valid` with it, at most so many rows.

    A row of two items is trained on whole.
    """
    rows = [row[::-1] for row in _rows(files)]
    valid = [row for row in rows if len(row) > 2] or rows
    chosen = np.arange(min(most, len(valid))) * len(valid) // min(most, len(valid))
    parts = {"train": [row[:-1] if len(row) > 2 else row for row in rows], "valid": [valid[place] for place in chosen]}
    for name, part in parts.items():
        _write(part, work / f"{name}.parquet")
    return {name: [str(work / f"{name}.parquet")] for name in parts}


def extended(network: DualViewNetwork, rows: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Rows with prior items, in order."""
    assert network.backwards is not None
    rows, made, size, config = list(rows), [], ranked_users(network.n_items), network.config
    for start in range(0, len(rows), size):
        some = [torch.tensor(row) for row in rows[start : start + size]]
        padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=PAD).to(network.device)
        found = with_prior_items(network.backwards, padded, config.prior_items, config.prior_length).cpu().numpy()
        made += [row[row != PAD] for row in found]
    return made


def _rows(files: list[str]) -> list[np.ndarray]:
    return [row for file in files for row in lists_of(pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks())]


def _write(rows: list[np.ndarray], path: Path) -> None:
    with whole(path) as partial:
        pq.write_table(pa.table({ITEM: rows}, _SCHEMA), partial)
