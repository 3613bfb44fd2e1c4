"""Item tables from a language model, before training: SAID's (pretrain=texts) and TSLRec's (pretrain=interests)."""

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import save_tensors
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.language_models import ModelSource, load_causal_model, load_tokenizer, resolve
from llmcfsr_merlin.training.language_steps import take_steps
from llmcfsr_merlin.training.preference_parsing import Parser, categories_of, principal, samples_of
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.text_generation import Writer, scaled
from llmcfsr_merlin.training.texts_by_id import item_texts

_TABLE = "table.safetensors"
_TEXT = 48  # most tokens of a text that is written


def pretrain_on_language(training: Training, network: DualViewNetwork) -> None:
    """Set the network's item table to what a language model makes of texts, or of training rows and texts.

    The finished table is kept for a training that was interrupted afterwards; the steps before it go on from the last
    multiple of twenty.
    """
    if network.items.collaborative is None:
        raise InputError(f"train.pretrain={training.settings.pretrain} needs a network with an item table")
    work = training.work / "language"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / _TABLE).is_file():
        torch.manual_seed(training.settings.seed)
        source = resolve(training.settings.language_model)
        learn = written if training.settings.pretrain == "texts" else parsed
        save_tensors({"table": learn(training, source, network.config.hidden)}, work / _TABLE)
    table = load_file(work / _TABLE)["table"]
    with torch.no_grad():
        network.items.collaborative.weight[FIRST_ITEM:, : table.shape[1]] = table[FIRST_ITEM:].to(network.device)


def written(training: Training, source: ModelSource, width: int) -> Tensor:
    """SAID: float [V, width], zero for items without a text."""
    texts, device = item_texts(training.dataset), choose_device(training.settings.device)
    having = [item for item, text in enumerate(texts) if text]
    tokenizer = load_tokenizer(source, _TEXT)
    given = tokenizer([texts[item] for item in having], truncation=True, max_length=_TEXT, add_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens = [[*text, *end] for text in given["input_ids"]]
    writer = Writer(load_causal_model(source, str(device)), tokens, width, tokenizer.bos_token_id)
    take_steps(writer, len(tokens), writer, training)
    table = torch.zeros(len(texts), width)
    table[having] = scaled(writer.rows.weight.detach().cpu())
    return table


def parsed(training: Training, source: ModelSource, width: int) -> Tensor:
    """TSLRec: float [V, at most width]."""
    if training.item_table is None:
        raise InputError("train.pretrain=interests needs another trained model's item table: set train.align_to=sasrec")
    texts, settings = item_texts(training.dataset), training.settings
    categories = categories_of(training.item_table, training.dataset.train_counts > 0, settings.seed)
    parser = Parser(TextEncoder.load(source, device=settings.device), texts, int(categories.max()) + 1)
    histories, shares = samples_of(training.files["train"], categories, parser.lines)

    def loss_of(chosen: Tensor) -> Tensor:
        return parser([histories[place] for place in chosen.tolist()], shares[chosen])

    take_steps(parser, len(histories), loss_of, training)
    vectors = parser.vectors()
    table = torch.zeros(len(vectors), min(width, vectors.shape[1]))
    found = principal(vectors[FIRST_ITEM:], width)
    table[FIRST_ITEM:, : found.shape[1]] = found
    return table
