"""SAID's item vectors (Hu et al., WWW 2024): a language model has to write an item's text from the item's vector.

No code is public. Assumed: an item's id is a row of the network's width, which one linear map (the projector) turns
into a soft token; the model reads its start token, the soft token and the text's tokens so far, and learns low-rank
adapters meanwhile. The rows are kept, scaled; the projector and the adapters are not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.text.tuning.lora import attach_lora


class Writer(nn.Module):
    """The loss of writing texts from soft tokens. Only tokens that occur in the texts are told apart: the others of a
    vocabulary of hundreds of thousands are never right, and scoring them takes most of a step's time."""

    read: Tensor
    written: Tensor
    first: Tensor

    def __init__(self, model: Any, tokens: list[list[int]], width: int, start: int | None):
        """model: causal, of transformers. tokens: of each text. width: of an item's row. start: the start token, if the
        model has one."""
        super().__init__()
        self.start = start
        self.known = sorted({token for text in tokens for token in text})
        place = {token: number for number, token in enumerate(self.known)}
        self.texts = [[place[token] for token in text] for text in tokens]
        given = torch.tensor(self.known, device=model.device)
        with torch.no_grad():
            self.register_buffer("read", model.get_input_embeddings()(given))
            self.register_buffer("written", model.get_output_embeddings().weight[given].clone())
            if start is not None:
                self.register_buffer("first", model.get_input_embeddings()(torch.tensor([start], device=model.device)))
        model.requires_grad_(False)
        self.reader = attach_lora(model.base_model, TuneConfig())
        self.rows = nn.Embedding(len(tokens), width)
        nn.init.zeros_(self.rows.weight)  # all that a row then holds is of its text, after a few passes too
        self.projector = nn.Linear(width, self.read.shape[1])
        nn.init.normal_(self.projector.weight, std=float(self.read.std()))  # soft tokens as large as the others
        self.to(model.device)

    def forward(self, chosen: Tensor) -> Tensor:
        """chosen: int64 [B], places of the texts. Mean cross-entropy of their tokens, a scalar."""
        texts = [torch.tensor(self.texts[place]) for place in chosen.tolist()]
        wanted = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-100).to(self.read.device)
        soft = self.projector(self.rows(chosen.to(self.read.device)))
        read = [soft.unsqueeze(1), self.read[wanted[:, :-1].clamp_min(0)]]
        if self.start is not None:
            read.insert(0, self.first.expand(len(soft), 1, -1))
        # Padding is behind the text, where a causal model does not see it.
        states = self.reader(inputs_embeds=torch.cat(read, 1)).last_hidden_state[:, -wanted.shape[1] :]
        real = wanted >= 0
        return F.cross_entropy(states[real] @ self.written.T, wanted[real])


def scaled(rows: Tensor) -> Tensor:
    """Rows float [N, d] with mean 0 in each dimension, and variance 1 / d over all."""
    rows = rows - rows.mean(0)
    return rows / rows.std().clamp_min(1e-12) * rows.shape[1] ** -0.5
