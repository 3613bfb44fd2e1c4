"""SAID and TSLRec: their losses against plain torch on a tiny language model, and what item tables are made of."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.scorer import ItemVectors
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.language_models import load_causal_model, load_tokenizer, resolve
from llmcfsr_merlin.training import language_pretraining, language_steps, next_item
from llmcfsr_merlin.training.language_pretraining import pretrain_on_language
from llmcfsr_merlin.training.preference_parsing import LATEST, Parser, categories_of, samples_of
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.text_generation import Writer
from llmcfsr_merlin.training.texts_by_id import item_texts
from tests.unit.text.conftest import catalogue
from tests.worlds import write_ingest

pytest.importorskip("peft")
TEXTS = ["title: red soap 1", "title: blue cream", "title: green"]


@pytest.fixture
def source(tiny_llama):
    return resolve(str(tiny_llama))


@pytest.fixture
def tokens(source):
    return load_tokenizer(source, 48)(TEXTS, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("start", [None, 2])
def test_a_text_is_written_from_its_row(source, tokens, start):
    model = load_causal_model(source)
    alone = load_causal_model(source)
    alone.load_state_dict(model.state_dict())  # the bare model on disk has no head: each has drawn its own
    writer = Writer(model, tokens, 6, start).eval()
    torch.nn.init.normal_(writer.rows.weight)
    found = writer(torch.tensor([2, 0]))
    known, losses = torch.tensor(writer.known), []
    for place in (2, 0):
        embedded = alone.get_input_embeddings()(torch.tensor(tokens[place]))
        soft = writer.rows.weight[place] @ writer.projector.weight.T + writer.projector.bias
        first = [] if start is None else [alone.get_input_embeddings().weight[start]]
        read = torch.stack([*first, soft, *embedded[:-1]])[None]
        scores = alone(inputs_embeds=read).logits[0, len(first) :][:, known]
        wanted = torch.tensor([writer.known.index(token) for token in tokens[place]])
        losses += F.cross_entropy(scores, wanted, reduction="none").tolist()
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_writing_trains_rows_projector_and_adapters_alone(source, tokens):
    writer = Writer(load_causal_model(source), tokens, 6, None)
    writer(torch.tensor([1])).backward()
    trained = {name for name, weight in writer.named_parameters() if weight.requires_grad}
    assert {"rows.weight", "projector.weight", "projector.bias"} < trained
    assert all("lora_" in name for name in trained if not name.startswith(("rows", "projector")))
    assert writer.rows.weight.grad[1].any() and not writer.rows.weight.grad[[0, 2]].any()


def test_interests_are_told_from_the_lines_of_the_latest_items(source):
    encoder = TextEncoder.load(source, device="cpu")
    model, tokenizer = TextEncoder.load(source, device="cpu").model, encoder.tokenizer
    parser = Parser(encoder, ["", *TEXTS], 3).eval()
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    found = parser([[1, 3], [2]], shares)
    wanted = []
    for history, share in zip([[1, 3], [2]], shares):
        given = [
            token for item in history for token in [*tokenizer(TEXTS[item - 1])["input_ids"], tokenizer.eos_token_id]
        ]
        state = model(torch.tensor([given])).last_hidden_state[0, -1]
        wanted.append(-(share * parser.head(F.layer_norm(state, state.shape)).softmax(0).log()).sum())
    torch.testing.assert_close(found, torch.stack(wanted).mean(), rtol=1e-4, atol=1e-4)
    vectors = parser.vectors()
    torch.testing.assert_close(vectors[2], parser.states([[2]])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors[0], vectors[1:].mean(0))


def test_categories_are_clusters_of_items_that_were_seen():
    centres = np.random.default_rng(0).normal(size=(4, 6)) * 10
    of = np.arange(40) % 4
    table = centres[of] + np.random.default_rng(1).normal(size=(40, 6)) * 0.1
    seen = np.arange(40) >= FIRST_ITEM
    found = categories_of(table.astype(np.float32), seen, 0)
    assert (found[:FIRST_ITEM] == -1).all() and (found[FIRST_ITEM:] >= 0).all()
    for one in set(found[FIRST_ITEM:]):
        assert len(set(of[(found == one)])) == 1


@pytest.fixture
def world(tmp_path, source):
    """A run whose users buy one colour; the last two of each are markers that nobody else has."""
    items = {row["item_id"]: row for row in catalogue()}
    sequences = {f"u{user}": [f"i{(user % 3) + 3 * ((user + step) % 12)}" for step in range(6)] for user in range(30)}
    for row in sequences.values():
        row += ["i38", "i39"]
    write_ingest(tmp_path, sequences, items)
    prepare_stage.run(Config.load(None, ["name=x", "prepare.min_user=1", "prepare.min_item=1"]), tmp_path)
    dataset = Dataset(tmp_path / "prepare", max_length=8)
    settings = {"language_model": source.name, "language_steps": 12, "language_batch": 4, "device": "cpu", "seed": 1}
    config = Config.load(None, [f"train.{key}={value}" for key, value in settings.items()])
    files = {"train": dataset.files("train"), "valid": dataset.files("valid")}
    return Training(config.train, dataset, files, tmp_path / "work", report=logging.info)


def with_settings(training, **settings):
    table = np.random.default_rng(0).normal(size=(len(training.dataset.vocabulary), 8)).astype(np.float32)
    return training._replace(settings=training.settings.model_copy(update=settings), item_table=table)


def network_for(training, **settings):
    config = Config.load(None, ["model.scorers.network.hidden=8"], "sasrec").model.network.model_copy(update=settings)
    torch.manual_seed(0)
    return DualViewNetwork(config, training.dataset.shape.n_items, 8, ItemVectors(training.dataset.shape))


def code_of(training, raw):
    return int(training.dataset.vocabulary.encode([raw])[0])


def test_texts_are_in_the_order_of_the_encoded_ids(world):
    texts = item_texts(world.dataset)
    assert len(texts) == world.dataset.shape.n_items and texts[:FIRST_ITEM] == [""] * FIRST_ITEM
    assert texts[code_of(world, "i1")] == "title: blue polish 1; brand: bolt; categories: nail, polish"
    assert texts[code_of(world, "i3")] == ""


def test_the_rows_that_write_the_texts_are_the_table_and_stay(world, monkeypatch):
    training = with_settings(world, pretrain="texts", epochs=1, batch_size=8)
    network = network_for(training, freeze_items=True)
    pretrain_on_language(training, network)
    table = network.items.collaborative.weight.detach().clone()
    rows = table[FIRST_ITEM:]
    assert not rows[code_of(world, "i3") - FIRST_ITEM].any()
    written = rows[rows.any(1)]
    assert written.mean(0).abs().max() < 1e-5 and written.std().item() == pytest.approx(8**-0.5, rel=1e-3)
    monkeypatch.setattr(language_pretraining, "resolve", None)  # a finished table is read
    again = network_for(training, freeze_items=True)
    before = again.position.weight.detach().clone()
    next_item.by_transformers(training, again)
    torch.testing.assert_close(again.items.collaborative.weight.detach()[FIRST_ITEM:], rows)
    assert not torch.equal(again.position.weight, before)


def alike(training, table):
    """Mean cosine of the rows of items of one brand, and of different ones; half of their texts is of the brand."""
    rows, brands = [], []
    for row in catalogue():
        if row["brand"] and row["item_id"] in training.dataset.vocabulary.ids.tolist():
            rows.append(table[code_of(training, row["item_id"])])
            brands.append(row["brand"])
    rows = F.normalize(torch.stack(rows) - torch.stack(rows).mean(0), dim=1)
    same = torch.tensor([[one == other for other in brands] for one in brands])
    cosines = rows @ rows.T
    return float(cosines[same & ~torch.eye(len(rows)).bool()].mean()), float(cosines[~same].mean())


@pytest.mark.parametrize("pretrain", ["texts", "interests"])
def test_a_table_holds_what_the_texts_say(world, pretrain):
    training = with_settings(world, pretrain=pretrain, language_steps=100, language_batch=16)
    network = network_for(training)
    pretrain_on_language(training, network)
    same, different = alike(training, network.items.collaborative.weight.detach())
    assert same > different + 0.08, (same, different)


def test_an_item_that_a_frozen_table_does_not_know_stays_at_zero(world):
    trained, other = (network_for(world, freeze_items=True) for _ in range(2))
    with torch.no_grad():
        trained.items.collaborative.weight[7] = 0.0  # as a new item is appended
    other.start_from(trained)
    torch.testing.assert_close(other.items.collaborative.weight, trained.items.collaborative.weight)


def test_the_vectors_of_the_tuned_model_start_the_table(world):
    training = with_settings(world, pretrain="interests", epochs=1, batch_size=8)
    network = network_for(training)
    pretrain_on_language(training, network)
    rows = network.items.collaborative.weight[FIRST_ITEM:].detach()
    torch.testing.assert_close(rows.std(0), torch.full((8,), 8**-0.5), rtol=1e-3, atol=1e-3)
    assert network.items.collaborative.weight.requires_grad


def test_interests_are_those_of_training_items_alone(world):
    categories = np.full(world.dataset.shape.n_items, 0)
    markers = [code_of(world, raw) for raw in ("i38", "i39")]
    categories[markers] = 1
    histories, shares = samples_of(world.files["train"], categories, [[1]] * len(categories))
    assert len(histories) == 30 and all(len(row) <= LATEST for row in histories)
    assert not {item for row in histories for item in row} & set(markers)
    assert (shares == torch.tensor([1.0, 0.0])).all()


def test_an_interrupted_pretraining_goes_on(world, monkeypatch):
    monkeypatch.setattr(language_steps, "_EVERY", 5)
    training = with_settings(world, pretrain="texts")
    whole = network_for(training)
    pretrain_on_language(training, whole)
    other, taken, forward = training._replace(work=world.work.parent / "other"), [], Writer.forward

    def killed(self, chosen):
        taken.append(1)
        if len(taken) == 8:
            raise KeyboardInterrupt
        return forward(self, chosen)

    monkeypatch.setattr(Writer, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain_on_language(other, network_for(training))
    network = network_for(training)
    pretrain_on_language(other, network)
    assert len(taken) == 8 + 7  # from the fifth step on
    torch.testing.assert_close(network.items.collaborative.weight, whole.items.collaborative.weight)


def test_what_it_needs_is_said(world):
    training = with_settings(world, pretrain="interests")._replace(item_table=None)
    with pytest.raises(InputError, match=r"needs another trained model's item table: set train\.align_to=sasrec"):
        pretrain_on_language(training, network_for(training))
    with pytest.raises(InputError, match="is not a causal language model"):
        load_causal_model(resolve("minilm"))
