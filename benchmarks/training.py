"""Training sequences/s and evaluation users/s, side by side in one run, into benchmarks/results/training.json.

    python benchmarks/training.py runs/beauty/prepare --rectools /path/to/venv/bin/python

Every system trains a SASRec-size model (64 wide, 2 layers, 2 heads, batch 128, at most 50 items) on the same split;
each measurement is a process of its own, the systems take turns, the median counts.

    trainer   ours by Transformers4Rec's Trainer from the Merlin dataloader
    loop      the same module, loss and batches in a plain PyTorch loop over arrays in memory
    stock     Transformers4Rec's own SASRec-size model (GPT2 block, next-item prediction, weight tying) by its Trainer
    rectools  RecTools' SASRec (pip install 'rectools[torch]' in an environment of its own)
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "training.json"
LENGTH, BATCH, HIDDEN = 50, 128, 64
WARM_UP = 5  # steps before the clock starts
EPOCHS = 6  # of ours and of the plain loop: what happens once a training (half a second) is not what an epoch takes


def settings(dual: bool):
    from llmcfsr_merlin.config.load import Config

    overrides = ["name=benchmark", f"train.batch_size={BATCH}", f"train.epochs={EPOCHS}"]
    return Config.load(None, [*overrides, f"model.scorers.network.hidden={HIDDEN}"], "llm_cfsr" if dual else "sasrec")


def scorer_of(config, dataset):
    """The scorer `network` of a model, untrained, with random vectors of 384 dimensions if it reads any."""
    import torch

    from llmcfsr_merlin.dataset.dataset import Shape
    from llmcfsr_merlin.scoring.scorer import ItemVectors
    from llmcfsr_merlin.scoring.scorers.network import NetworkScorer

    torch.manual_seed(0)
    shape = Shape(dataset.shape.n_items, LENGTH, 384 if config.model.network.reads else None)
    vectors = ItemVectors(shape)
    if vectors.semantic is not None:
        vectors.semantic.normal_()
    scorer = NetworkScorer(config.model.network, shape, vectors)
    scorer.network.initialise(torch.from_numpy(dataset.train_counts))
    return scorer


def trainer(prepared: Path, dual: bool) -> dict:
    import torch

    from llmcfsr_merlin.dataset.dataset import Dataset
    from llmcfsr_merlin.evaluation.cases import write_cases
    from llmcfsr_merlin.evaluation.ranks import rank_users
    from llmcfsr_merlin.scoring.ensemble import Ensemble
    from llmcfsr_merlin.scoring.ranker import Ranker
    from llmcfsr_merlin.training.t4rec_trainer import data_loader, load_schema, make_trainer

    config, schema, dataset = settings(dual), load_schema(prepared), Dataset(prepared)
    scorer = scorer_of(config, dataset)
    cpu = torch.device("cpu")
    loaders = {
        split: data_loader(dataset.files(split), schema, BATCH, split == "train", cpu) for split in ("train", "valid")
    }
    with tempfile.TemporaryDirectory() as work:
        made = make_trainer(scorer.network, config.train, schema, loaders, Path(work), evaluate=False)
        seconds = warm_training(made)
        for loader in loaders.values():
            loader.dataset.stop()
        users = write_cases(prepared, Path(work) / "cases.parquet", scorer.shape.n_items, negatives=0)
        ranker = Ranker(Ensemble(config.model, {"network": scorer}, scorer.shape, scorer.vectors), bulk=True)
        start = time.perf_counter()
        rank_users(
            ranker.scores, Path(work) / "cases.parquet", train_counts=dataset.train_counts, max_length=LENGTH,
            protocols=("full",), ks=(10,),
        )  # fmt: skip
        evaluation = time.perf_counter() - start
    return {"sequences": EPOCHS * rows(prepared), "seconds": seconds, "users": users, "evaluation_seconds": evaluation}


def loop(prepared: Path, dual: bool) -> dict:
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from llmcfsr_merlin.dataset.dataset import Dataset
    from llmcfsr_merlin.dataset.names import ITEM, PAD
    from llmcfsr_merlin.scoring.network.attention import Packing
    from llmcfsr_merlin.training.losses import loss_function

    config, dataset = settings(dual), Dataset(prepared)
    network, next_item_loss = scorer_of(config, dataset).network, loss_function(config.train.loss)
    lists = [row for file in dataset.files("train") for row in pq.read_table(file)[ITEM].to_pylist()]
    lengths = np.array([len(row) for row in lists])
    padded = np.zeros((len(lists), lengths.max()), np.int64)
    for place, row in enumerate(lists):
        padded[place, : len(row)] = row
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    random, warm_up = np.random.default_rng(0), np.arange(WARM_UP * BATCH)
    orders = [warm_up, *(random.permutation(len(lists)) for _ in range(EPOCHS))]
    batches = [order[first : first + BATCH] for order in orders for first in range(0, len(order), BATCH)]
    for step, chosen in enumerate(batches):
        if step == WARM_UP:
            start = time.perf_counter()
        codes = torch.from_numpy(padded[chosen, : lengths[chosen].max()])
        packing = Packing(codes[:, 1:] != PAD)
        states = network.encode(network.embed(codes[:, :-1], packing), packing)
        loss = next_item_loss(network, states, packing.pack(codes[:, 1:]), config.train).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return {"sequences": EPOCHS * len(lists), "seconds": time.perf_counter() - start}


def stock(prepared: Path, _dual: bool) -> dict:
    import torch

    importlib.import_module("llmcfsr_merlin.training.t4rec_compat")
    import transformers4rec.torch as tr
    from transformers4rec.torch.ranking_metric import NDCGAt

    from llmcfsr_merlin.dataset.dataset import Dataset
    from llmcfsr_merlin.training.t4rec_trainer import StockTrainer, TrainerArguments, data_loader, load_schema
    from llmcfsr_merlin.training.trainer import ON_CPU

    schema, dataset = load_schema(prepared), Dataset(prepared)
    torch.manual_seed(0)
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema, max_sequence_length=LENGTH + 1, embedding_dims={"item_id": HIDDEN}, d_output=HIDDEN, masking="causal"
    )
    body = tr.GPT2Config.build(d_model=HIDDEN, n_head=2, n_layer=2, total_seq_length=LENGTH + 1)
    model = body.to_torch_model(
        inputs, tr.NextItemPredictionTask(weight_tying=True, metrics=[NDCGAt(top_ks=[10], labels_onehot=True)])
    )
    loaders = {
        split: data_loader(dataset.files(split), schema, BATCH, split == "train", torch.device("cpu"))
        for split in ("train", "valid")
    }
    with tempfile.TemporaryDirectory() as work:
        arguments = TrainerArguments(
            output_dir=work, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH, num_train_epochs=1,
            **{ON_CPU: True}, report_to=[], log_level="error", save_strategy="no", disable_tqdm=True, predict_top_k=0,
        )  # fmt: skip
        made = StockTrainer(
            model=model, args=arguments, schema=schema, train_dataloader=loaders["train"],
            eval_dataloader=loaders["valid"], compute_metrics=True,
        )  # fmt: skip
        seconds = warm_training(made)
        start = time.perf_counter()
        made.evaluate()
        evaluation = time.perf_counter() - start
    for loader in loaders.values():
        loader.dataset.stop()
    count = rows(prepared)
    return {"sequences": count, "seconds": seconds, "users": count, "evaluation_seconds": evaluation}


def warm_training(made) -> float:
    """Seconds of a Trainer's epochs, after a few steps: its first ones import and allocate."""
    made.args.max_steps = WARM_UP
    made.train()
    made.args.max_steps = -1
    start = time.perf_counter()
    made.train()
    return time.perf_counter() - start


# Runs in RecTools' own environment, which has no Merlin. An epoch takes it minutes, as padding is computed like items:
# two fits of a few batches are timed, and their difference is what the batches between them took.
_RECTOOLS = """
import sys, time, json, warnings, logging
warnings.filterwarnings("ignore"); logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
import pandas as pd
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
frame = pd.read_csv(sys.argv[1], parse_dates=["datetime"])
dataset = Dataset.construct(frame)
def fit(batches):
    def trainer():
        return Trainer(max_epochs=1, limit_train_batches=batches, accelerator="cpu", logger=False,
                       enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    model = SASRecModel(n_factors=64, n_blocks=2, n_heads=2, session_max_len=50, batch_size=BATCH, epochs=1, lr=1e-3,
                        loss="softmax", dataloader_num_workers=0, get_trainer_func=trainer)  # its default and fastest
    start = time.perf_counter()
    model.fit(dataset)
    return model, time.perf_counter() - start
FEW, BATCH = 4, 128
MORE = FEW + 8
_, few = fit(FEW)  # imports and allocates too
_, few = fit(FEW)
model, more = fit(MORE)
users = frame[Columns.User].unique()
start = time.perf_counter()
model.recommend(users=users, dataset=dataset, k=10, filter_viewed=False)
print(json.dumps({"sequences": (MORE - FEW) * BATCH, "seconds": more - few, "users": len(users),
                  "evaluation_seconds": time.perf_counter() - start}))
"""


def rectools(python: str, prepared: Path, scratch: Path) -> dict:
    import pandas as pd
    import pyarrow.parquet as pq

    from llmcfsr_merlin.dataset.dataset import Dataset

    log = scratch / "log.csv"  # its environment may have no Parquet reader
    if not log.is_file():
        parts = [pq.read_table(file).to_pandas() for file in Dataset(prepared).files("train")]
        frame = pd.concat(parts).explode("item_id").reset_index(drop=True)
        frame["weight"] = 1.0
        frame["datetime"] = pd.to_datetime(frame.groupby("user_id").cumcount(), unit="D")
        frame.to_csv(log, index=False)
    done = subprocess.run([python, "-c", _RECTOOLS, str(log)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"rectools failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(prepared: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in (prepared / "train").glob("*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--rectools", help="python of an environment with rectools[torch]")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("SYSTEM", "DUAL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, dual = arguments.child
        print(json.dumps({"trainer": trainer, "loop": loop, "stock": stock}[system](arguments.prepared, dual == "1")))
        return
    runs: dict[str, list[dict]] = {}
    systems = [("trainer", "0"), ("loop", "0"), ("stock", "0"), ("trainer", "1"), ("loop", "1")]
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.repeat):
            for system, dual in systems:
                name = f"{system}, {'dual view' if dual == '1' else 'id only'}"
                command = [sys.executable, __file__, str(arguments.prepared), "--child", system, dual]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
                runs.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], flush=True)
            if arguments.rectools:
                runs.setdefault("rectools, id only", []).append(
                    rectools(arguments.rectools, arguments.prepared, Path(scratch))
                )
                print("rectools", runs["rectools, id only"][-1], flush=True)
    table = {name: summary(found) for name, found in runs.items()}
    RESULT.write_text(
        json.dumps(
            {
                "command": "python benchmarks/training.py " + " ".join(sys.argv[1:]),
                "cores": len(os.sched_getaffinity(0)),
                "threads": os.environ.get("OMP_NUM_THREADS"),
                "systems": table,
            },
            indent=1,
        )
        + "\n"
    )
    for name, found in table.items():
        print(name, found)


def summary(found: list[dict]) -> dict:
    """Medians; the rates of all runs beside them."""
    rates = [round(run["sequences"] / run["seconds"]) for run in found]
    entry = {"sequences_per_second": statistics.median(rates), "all": rates}
    if "users" in found[0]:
        users = [round(run["users"] / run["evaluation_seconds"]) for run in found]
        entry |= {"evaluated_users_per_second": statistics.median(users), "all_evaluated": users}
    return entry


if __name__ == "__main__":
    main()
