"""The default procedures: next-item (or masked-item) training with a transformers Trainer."""

from collections.abc import Sequence

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.attribute_pretraining import attribute_lists, pretrain_on_attributes
from llmcfsr_merlin.training.checkpoints import whole_checkpoints
from llmcfsr_merlin.training.context_inference import infer_rows
from llmcfsr_merlin.training.data_parallel import fit_in_processes
from llmcfsr_merlin.training.distillation import Distillation, similar_users
from llmcfsr_merlin.training.language_pretraining import pretrain_on_language
from llmcfsr_merlin.training.losses.mutual_distillation import MutualDistillation
from llmcfsr_merlin.training.objective import Auxiliary
from llmcfsr_merlin.training.procedures import Training, fit_of
from llmcfsr_merlin.training.reversed_pretraining import pretrain_reversed
from llmcfsr_merlin.training.tail_training import TailTraining


def by_transformers4rec(training: Training, network: DualViewNetwork) -> list[dict]:
    """Train with Transformers4Rec's Trainer over the Merlin dataloader."""
    return _train(training, network, "transformers4rec")


def by_transformers(training: Training, network: DualViewNetwork) -> list[dict]:
    """Train with transformers' own Trainer over batches in memory; does not need Merlin."""
    return _train(training, network, "transformers")


def _train(training: Training, network: DualViewNetwork, trainer: str) -> list[dict]:
    """Train until validation NDCG@10 (full ranking) stops improving, in train.processes processes; what comes before
    and after that."""
    settings = training.settings
    fit, distillation, tail, mutual = fit_of(trainer), None, None, None
    if settings.pretrain == "reversed":
        training = pretrain_reversed(training, network, fit)
    elif settings.pretrain == "attributes":
        pretrain_on_attributes(training, network)
    elif settings.pretrain in ("texts", "interests"):
        pretrain_on_language(training, network)
    if settings.distil:
        distillation = _distillation(training, network)
    if settings.enhance_users or settings.enhance_items:
        tail = _tail_training(training, network)
    if settings.copies:
        mutual = MutualDistillation.of(network, settings, attribute_lists(training))
    if settings.pretrain == "plain":
        _pretrain(training, network, trainer)
    table = training.item_table
    device = choose_device(settings.device)
    auxiliary = Auxiliary(None if table is None else torch.from_numpy(table).to(device), distillation, tail, mutual)
    if settings.processes > 1:
        history = fit_in_processes(trainer, network, training, auxiliary)
    else:
        checkpoints = whole_checkpoints(training.work)
        history = fit(network, training, auxiliary, str(checkpoints[-1]) if checkpoints else None)
    if settings.infer_up_to:
        counts = torch.from_numpy(training.dataset.train_counts)
        infer_rows(network, training.files["train"], counts, settings)
    return history


def _pretrain(training: Training, network: DualViewNetwork, trainer: str) -> None:
    """The first training, without the losses on the tail; its result is kept for a resumed one."""
    work = training.work / "plain"
    kept = work / "pretrained.safetensors"
    if not kept.is_file():
        work.mkdir(exist_ok=True)
        without = {"pretrain": None, "enhance_users": 0.0, "enhance_items": 0.0, "infer_up_to": 0}
        alone = training.settings.model_copy(update=without)
        training.report("pre-training without the losses on the tail")
        _train(training._replace(settings=alone, work=work), network, trainer)
        save_tensors({name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}, kept)
        training.report("training goes on from its best epoch")
    network.load_state_dict(load_file(kept))


def _tail_training(training: Training, network: DualViewNetwork) -> TailTraining:
    if network.tail_maps is None or network.masked:
        raise InputError(
            "train.enhance_users and enhance_items need model.scorers.network.tail_maps=true and a causal backbone"
        )
    counts = training.dataset.train_counts
    return TailTraining(training.files["train"], counts, training.settings, network.max_length)


def _distillation(training: Training, network: DualViewNetwork) -> Distillation:
    """Similar users by the mean item vector of the history, for the training rows in order."""
    vectors = network.items.vectors.semantic
    if vectors is None:
        raise InputError("train.distil compares users by item vectors: expected a model with semantic vectors")
    profiles = _mean_vectors(training.files["train"], torch.nn.functional.normalize(vectors, dim=-1))
    return Distillation(similar_users(profiles, training.settings.distil_users), network.width)


def _mean_vectors(files: Sequence[str], table: Tensor) -> Tensor:
    """float [U, D]: the mean over each row's items of table, float [V, D]."""
    profiles = []
    for file in files:
        lists = pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks()
        items, offsets = (torch.from_numpy(part.to_numpy().copy()) for part in (lists.flatten(), lists.offsets[:-1]))
        bag = torch.nn.functional.embedding_bag(items, table, offsets.long() - offsets[0], mode="mean")
        profiles.append(bag)
    return torch.cat(profiles)
