"""transformers' own Trainer over batches in memory: training without Merlin, and faster on a GPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerControl, TrainingArguments

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.batches import Batches
from llmcfsr_merlin.training.memory import ranked_users
from llmcfsr_merlin.training.objective import Auxiliary, Objective, predicted_positions, shortest_prefix
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.trainer import (
    BEST,
    KnownParts,
    Order,
    Resumable,
    callbacks,
    one_device,
    run_trainer,
    trainer_arguments,
)
from llmcfsr_merlin.training.validation import held_out_ranks, quality

_NOTHING = Auxiliary()


class _Model(KnownParts):
    """Computes the loss of a batch, in the Trainer's interface."""

    def __init__(self, network: DualViewNetwork, objective: Objective):
        super().__init__()
        self.network, self._objective = network, objective
        self.beside = objective.auxiliary.mutual  # its weights are trained and kept in checkpoints too

    def forward(self, item_id: Tensor, row: Tensor, count: int) -> dict[str, Tensor]:
        positions = predicted_positions(self.network, len(item_id), count)
        return {"loss": self._objective(item_id, row, positions)}


class _Ranking(Trainer):
    """Batches out of memory; evaluation ranks the held-out items."""

    control: TrainerControl

    def __init__(self, *arguments: Any, batches: Batches, valid: Batches, exclude_history: bool, **settings: Any):
        super().__init__(*arguments, **settings)
        self._batches, self._valid, self._exclude_history = batches, valid, exclude_history
        self.model_accepts_loss_kwargs = False  # transformers 4.46 passes the number of items in the batch

    def get_train_dataloader(self) -> Batches:
        return self._batches

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """NDCG@10 and HR@10 of the held-out items in full ranking, named as by Transformers4Rec's Trainer."""
        start, network = time.perf_counter(), self.model.network
        self.model.eval()
        with torch.inference_mode():
            catalogue = network.catalogue()
            ranks = [
                held_out_ranks(network, batch[ITEM].to(network.device), catalogue, self._exclude_history)
                for batch in self._valid
            ]
        found = {BEST.replace("ndcg_at_10", name): value for name, value in quality(torch.cat(ranks)).items()}
        found["eval_runtime"] = time.perf_counter() - start
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


class _Trainer(Resumable, _Ranking):
    pass


def fit(
    network: DualViewNetwork, training: Training, auxiliary: Auxiliary = _NOTHING, checkpoint: str | None = None
) -> list[dict]:
    """Train a network in place to its best epoch, see trainer.run_trainer."""
    train, device = training.settings, choose_device(training.settings.device)
    assert train.batch_size is not None, "fit_model chooses one"
    batches = Batches(
        training.files["train"], train.batch_size, device,
        shuffle=True, seed=train.seed, prefixes=shortest_prefix(network, train),
    )  # fmt: skip
    valid = Batches(training.files["valid"], ranked_users(network.n_items), device)

    def make(settings: TrainConfig) -> Trainer:
        return make_trainer(
            network, settings, batches, valid, training.work, auxiliary, training.report,
            exclude_history=training.exclude_history,
        )  # fmt: skip

    return run_trainer(make, network, training, auxiliary, checkpoint)


def make_trainer(
    network: DualViewNetwork,
    train: TrainConfig,
    batches: Batches,
    valid: Batches,
    work: Path,
    auxiliary: Auxiliary = _NOTHING,
    report: Callable[[str], None] = lambda line: None,
    evaluate: bool = True,
    exclude_history: bool = False,
) -> Trainer:
    """The Trainer of a network, see t4rec_trainer.make_trainer."""
    arguments = trainer_arguments(train, work, len(batches), network.n_items, evaluate=evaluate)
    return _Trainer(
        model=_Model(network, Objective(network, train, auxiliary)),
        args=one_device(TrainingArguments(remove_unused_columns=False, **arguments)),
        train_dataset=batches.dataset,  # only its length is used
        eval_dataset=valid.dataset,
        batches=batches,
        valid=valid,
        exclude_history=exclude_history,
        callbacks=[*callbacks(train, report, evaluate), Order(batches)],
    )
