"""Step of the GPU kit: training of a Beauty-sized log on the device, beside a plain loop and beside the CPU.

The log is made in place: each item has a few that follow it, so that there is something to learn.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.gpu.common import BEAUTY, CUDA, DEVICE, LENGTH, model, wait

Save = Callable[[dict], None]
SYSTEMS = [
    ("float32", "trainer"),
    ("float32", "transformers4rec's trainer"),
    ("float32", "plain loop"),
    ("float32", "loop of recorded steps"),
    ("bfloat16", "trainer"),
]


def write_log(folder: Path, users: int, items: int, seed: int = 0) -> dict[str, list[str]]:
    """Parquet of `train` and `valid`: codes, popular ones more often, and in two of three steps a follower."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(3 + random.geometric(0.13, users), LENGTH + 1)
    popular = 3 + np.minimum(random.zipf(1.1, (users, LENGTH + 1)) - 1, items - 1)
    popular = 3 + (popular * 7919) % items  # popularity has nothing to do with the codes' order
    followers = random.integers(3, items + 3, (items + 3, 4))
    codes = popular.copy()
    for step in range(1, LENGTH + 1):
        follows = followers[codes[:, step - 1], random.integers(0, 4, users)]
        codes[:, step] = np.where(random.random(users) < 2 / 3, follows, popular[:, step])
    found = {}
    for split, held_out in (("train", 1), ("valid", 0)):
        rows = [row[: length - held_out] for row, length in zip(codes, lengths)]
        path = folder / f"{split}.parquet"
        pq.write_table(pa.table({"item_id": pa.array(rows, pa.list_(pa.int64()))}), path)
        found[split] = [str(path)]
    return found


def network_of(items: int, name: str):
    made, config = model(items, name)
    return made.scorers["network"].network, config


def training_of(files: dict, work: Path, config, **settings):
    from llmcfsr_merlin.training.procedures import Training

    train = config.train.model_copy(update={"batch_size": 256} | settings)
    return Training(train, None, files, work)


def speed(files: dict, name: str, items: int, precision: str, system: str, epochs: int) -> dict:
    """Sequences a second by one of SYSTEMS, what it does once in a training (imports, recording) left out."""
    from llmcfsr_merlin.training.batches import Batches

    network, config = network_of(items, name)
    network.to(DEVICE)
    batches = Batches(files["train"], 256, DEVICE, shuffle=True)
    if system in ("plain loop", "loop of recorded steps"):
        return {"sequences_per_second": _loop(network, config.train, batches, precision, system)}
    train = config.train.model_copy(update={"batch_size": 256, "epochs": epochs, "precision": precision})
    with tempfile.TemporaryDirectory() as work:
        if system == "trainer":
            from llmcfsr_merlin.training.plain_trainer import make_trainer

            made = make_trainer(network, train, batches, batches, Path(work), evaluate=False)
        else:
            from llmcfsr_merlin.training.t4rec_trainer import Pairs, make_trainer

            loaders = dict.fromkeys(("train", "valid"), Pairs(batches))
            made = make_trainer(network, train, None, loaders, Path(work), evaluate=False)
        made.args.max_steps = 5
        start = time.perf_counter()
        made.train()
        wait()
        first = time.perf_counter() - start
        made.args.max_steps = -1
        start = time.perf_counter()
        made.train()
        wait()
    rate = epochs * len(batches.dataset) / (time.perf_counter() - start)
    return {"sequences_per_second": round(rate), "first_steps_seconds": round(first, 2)}


def _loop(network, train, batches, precision: str, system: str) -> int:
    from llmcfsr_merlin.training.objective import Objective, predicted_positions

    objective = Objective(network, train)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=CUDA)
    network.train()
    for _ in range(2):
        wait()
        start = time.perf_counter()
        for batch in batches:
            items, known = batch["item_id"], None
            if system != "plain loop":
                known = predicted_positions(network, len(items), batch["count"])
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = objective(items, batch["row"], known)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
        wait()
    return round(len(batches.dataset) / (time.perf_counter() - start))


class _Stop(Exception):
    pass


def curve(files: dict, items: int, device: str, precision: str, work: Path, epochs: int, stop_after: int = 0) -> dict:
    """Loss and validation NDCG@10 of each epoch, the seconds of the whole; stop_after: dies there and goes on."""
    from llmcfsr_merlin.training.checkpoints import whole_checkpoints
    from llmcfsr_merlin.training.plain_trainer import fit

    network, config = network_of(items, "llm_cfsr")
    start = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    training = training_of(files, work, config, epochs=epochs, device=device, precision=precision)
    if stop_after:

        def dying(line: str) -> None:
            if line.startswith(f"epoch {stop_after + 1}/"):
                raise _Stop

        try:
            fit(network, training._replace(report=dying))
        except _Stop:
            network, _ = network_of(items, "llm_cfsr")
    kept = whole_checkpoints(work)
    history = fit(network, training, checkpoint=str(kept[-1]) if kept else None)
    found = {"seconds": round(time.perf_counter() - start, 1), "resumed": bool(kept)}
    return found | {name: [round(epoch[name], 4) for epoch in history] for name in ("loss", "ndcg@10")}


def run(small: bool, save: Save) -> dict:
    users, items = (300, 150) if small else BEAUTY
    epochs = 2 if small else 3
    found: dict = {"speed": {}, "curve": {}}
    with tempfile.TemporaryDirectory() as folder:
        files = write_log(Path(folder), users, items)
        (few := Path(folder) / "few").mkdir()
        some = write_log(few, users // 4, items // 4)  # for the CPU beside
        for name in ("llm_cfsr", "sasrec"):
            for precision, system in SYSTEMS:
                label = f"{name}, {precision}, {system}"
                found["speed"][label] = speed(files, name, items, precision, system, 2 if small else 6)
                save(found)
        device = DEVICE.type
        for label, arguments in {
            "device, float32": (device, "float32", 0),
            "device, bfloat16": (device, "bfloat16", 0),
            "device, stopped after an epoch": (device, "float32", 1),
            "cpu": ("cpu", "float32", 0),
        }.items():
            where, precision, stop = arguments
            work = Path(folder) / "work"
            found["curve"][label] = curve(some, items // 4, where, precision, work, epochs, stop)
            shutil.rmtree(work)
            save(found)
    return found
