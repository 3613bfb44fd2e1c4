"""Data-parallel training, one process per GPU: each reads its share of the users, gradients are averaged.

Shares have equal length (the last ones repeat a user), so that no process waits for another at the end. Every
process ranks all validation users: with equal weights all take the same decisions; only gradients are exchanged.
"""

import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed
import torch.multiprocessing
import transformers
from safetensors.torch import load_file

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset, Shape
from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import remove, save_tensors, write_json
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.watch import Watch
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.scorer import ItemVectors
from llmcfsr_merlin.training.checkpoints import whole_checkpoints
from llmcfsr_merlin.training.objective import Auxiliary
from llmcfsr_merlin.training.procedures import Training, fit_of

_START, _BEST, _HISTORY, _REFUSED = "start.safetensors", "best.safetensors", "history.json", "refused.txt"
_LOG_SHARE, _SEMANTIC = "frozen/log_share", "frozen/semantic"


@dataclass(frozen=True)
class _Job:
    """The job of each process. train.batch_size is per process; checkpoint: a folder name, or None."""

    trainer: str
    network: NetworkSettings
    train: TrainConfig
    shape: Shape
    prepared: Path
    valid: list[str]
    work: Path
    item_table: torch.Tensor | None
    exclude_history: bool
    watch: Watch
    checkpoint: str | None
    rendezvous: str


def fit_in_processes(trainer: str, network: DualViewNetwork, training: Training, auxiliary: Auxiliary) -> list[dict]:
    """Train in train.processes processes; train.batch_size is the total over all of them.

    trainer: transformers4rec or transformers. InputError if there are more processes than GPUs (unless on the CPU) or
    than users, for prefixes, and for self-distillation, whose per-user memory would have to be shared.
    """
    train, files, work, report = training.settings, training.files, training.work, training.report
    assert train.batch_size is not None, "fit_model chooses one"
    count, device = train.processes, choose_device(train.device)
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise InputError(f"train.processes: expected at most {torch.cuda.device_count()} (the GPUs), found {count}")
    if train.samples == "prefixes":  # shares of equally many rows differ in their number of prefixes
        raise InputError("train.samples=prefixes trains in one process: set train.processes=1")
    if auxiliary.distillation is not None:
        raise InputError("train.distil keeps the states of all users in one process: set train.processes=1")
    if auxiliary.tail is not None:
        raise InputError("train.enhance_users and enhance_items train in one process: set train.processes=1")
    if auxiliary.mutual is not None:
        raise InputError("train.copies trains in one process: set train.processes=1")
    _write_shares(files["train"], work, count)
    semantic = network.items.vectors.semantic
    frozen = {_LOG_SHARE: network.items.log_share.cpu()}  # what a network's state dict leaves out
    if semantic is not None:
        frozen[_SEMANTIC] = semantic.cpu()
    save_tensors(_weights(network) | frozen, work / _START)
    found = [whole_checkpoints(work / f"process-{rank}") for rank in range(count)]
    common = set.intersection(*({path.name for path in paths} for paths in found))
    for path in (path for paths in found for path in paths if path.name not in common):
        remove(path)
    job = _Job(
        trainer,
        network.config,
        train.model_copy(update={"batch_size": -(-train.batch_size // count)}),
        Shape(network.n_items, network.max_length, None if semantic is None else semantic.shape[1]),
        training.dataset.prepared,
        files["valid"],
        work,
        None if auxiliary.item_table is None else auxiliary.item_table.cpu(),
        training.exclude_history,
        training.watch,
        max(common, key=lambda name: int(name.rsplit("-", 1)[1]), default=None),
        f"rendezvous-{uuid.uuid4().hex}",
    )
    (work / _REFUSED).unlink(missing_ok=True)  # from an earlier attempt
    report(f"{count} processes, {job.train.batch_size} sequences per step in each")
    try:
        _spawn(job, report)
    except torch.multiprocessing.ProcessRaisedException:
        if (work / _REFUSED).is_file():
            raise InputError((work / _REFUSED).read_text()) from None
        raise
    except torch.multiprocessing.ProcessExitedException as error:
        raise InputError(
            f"a training process was killed ({error}), most likely out of memory: lower "
            "train.processes, then run the same command, which continues from the last epoch"
        ) from None
    network.load_state_dict(load_file(str(work / _BEST)))
    network.eval().to(device)  # as the Trainer leaves it
    return json.loads((work / _HISTORY).read_text())


def _spawn(job: _Job, report: Callable[[str], None]) -> None:
    """Run the processes until they end; the first one's reports are forwarded."""
    lines, said = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    processes = torch.multiprocessing.spawn(_work, (job, said), nprocs=job.train.processes, join=False)
    said.close()  # held by the child processes: when the last one ends, so does the stream
    relay = threading.Thread(target=_relay, args=(lines, report), daemon=True)
    relay.start()
    try:
        while not processes.join():
            pass
    finally:
        relay.join(timeout=5)


def _relay(lines: Connection, report: Callable[[str], None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            report(lines.recv_bytes().decode())


def _work(rank: int, job: _Job, said: Connection) -> None:
    warnings.simplefilter("ignore")  # as the command line does
    transformers.logging.set_verbosity_error()
    if job.train.device != "cpu" and torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[rank] if visible else str(rank)
    on_gpu = choose_device(job.train.device).type == "cuda"
    if not on_gpu:
        torch.set_num_threads(max(torch.get_num_threads() // job.train.processes, 1))
    # A file, not a port: nothing listens, and two trainings on one machine cannot collide.
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", f"file://{(job.work / job.rendezvous).resolve()}",
        rank=rank, world_size=job.train.processes,
    )  # fmt: skip
    try:
        network = DualViewNetwork(job.network, *job.shape[:2], ItemVectors(job.shape))
        start = load_file(str(job.work / _START))
        network.items.log_share.copy_(start.pop(_LOG_SHARE))
        if network.items.vectors.semantic is not None:
            network.items.vectors.semantic.copy_(start.pop(_SEMANTIC))
        network.load_state_dict(start)
        folder = job.work / f"process-{rank}"
        training = Training(
            job.train.model_copy(update={"seed": job.train.seed + rank}),  # dropout and negatives differ
            Dataset(job.prepared),
            {"train": [str(job.work / f"share-{rank}.parquet")], "valid": job.valid},
            folder,
            exclude_history=job.exclude_history,
            watch=job.watch if rank == 0 else Watch(),
            report=(lambda line: said.send_bytes(line.encode())) if rank == 0 else lambda line: None,
        )
        checkpoint = None if job.checkpoint is None else str(folder / job.checkpoint)
        history = fit_of(job.trainer)(network, training, Auxiliary(job.item_table), checkpoint)
        if rank == 0:
            save_tensors(_weights(network), job.work / _BEST)
            write_json(job.work / _HISTORY, history)
    except InputError as error:
        (job.work / _REFUSED).write_text(str(error))
        raise
    finally:
        torch.distributed.destroy_process_group()


def _weights(network: DualViewNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _write_shares(files: list[str], work: Path, count: int) -> None:
    """Write work/share-<r>.parquet: every count-th training row from the r-th; short shares repeat their first row."""
    schema = pa.schema([(ITEM, pa.list_(pa.int64()))])
    table = pa.concat_tables([pq.read_table(file, columns=[ITEM]).cast(schema) for file in files])
    total = len(table)
    if total < count:
        raise InputError(f"train.processes: expected at most one per training user ({total}), found {count}")
    for rank in range(count):
        places = np.arange(rank, total, count)
        places = np.append(places, places[: -(-total // count) - len(places)])
        pq.write_table(table.take(places), work / f"share-{rank}.parquet")
