"""Fine-tuning and enrichment inside the stage `embed`."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.embed_settings import EmbedConfig, EnrichConfig
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.dataset.item_vectors import load_item_table
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.watch import Watch
from llmcfsr_merlin.text import enrichment
from llmcfsr_merlin.text.embed import embed_table
from llmcfsr_merlin.text.item_encoder import ItemEncoder, encode_items
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.shards import plan_shards
from llmcfsr_merlin.text.tuning import reuse as tuned

from .conftest import catalogue

IDS = [f"i{number}" for number in range(40)]
TUNE = TuneConfig(enabled=True, epochs=8, batch_size=8, learning_rate=1e-2, evaluate_every=2, holdout=0.3)


@pytest.fixture
def config(tiny_bert):
    return EmbedConfig(model=str(tiny_bert), template="beauty", batch_size=8, device="cpu", tune=TUNE)


@pytest.fixture
def sequences_dir(tmp_path):
    """Whole histories as codes; codes 30 and above stand in the last two places only: validation and test."""
    rows = [[3, 5, 7, 30, 31], [4, 8, 9, 10, 32, 33], [3, 34]]
    (tmp_path / "sequences").mkdir()
    table = pa.table({"user_id": ["a", "b", "c"], "item_id": pa.array(rows, type=pa.list_(pa.int64()))})
    pq.write_table(table, tmp_path / "sequences" / "part-00000.parquet")
    return tmp_path / "sequences"


def embed(config, items_dir, out, **options):
    out.mkdir(parents=True, exist_ok=True)
    return embed_table(config, resolve(config.model), items_dir, IDS, out, **options)


def test_tuned_vectors_are_made_kept_and_reused(config, items_dir, tmp_path, monkeypatch):
    counts = embed(config, items_dir, tmp_path / "a")
    base = embed(config.model_copy(update={"tune": TuneConfig()}), items_dir, tmp_path / "base")
    assert counts["recipe"] != base["recipe"] and counts["tuned"]["best_step"] > 0 and base["tuned"] is None
    table, plain = (load_item_table(IDS, tmp_path / name / "vectors").vectors for name in ("a", "base"))
    assert np.abs(table - plain).max() > 1e-3
    new, _ = encode_items(tmp_path / "a", catalogue()[5:6], device="cpu")
    np.testing.assert_allclose(new[0], table[3 + 5], atol=1e-5)
    monkeypatch.setattr(tuned, "tune", None)  # a second tuning would fail
    reduced = config.model_copy(update={"reduction": "pca", "dimension": 4})
    again = embed(reduced, items_dir, tmp_path / "b", previous=tmp_path / "a")
    assert again["tuned"]["reused"] and again["cached"] == 39


def test_a_copy_or_a_record_that_was_cut_is_not_taken_for_whole(config, items_dir, tmp_path, monkeypatch):
    first = embed(config, items_dir, tmp_path / "a")
    real = tuned.shutil.copytree

    def stopped(source, target, **options):
        real(source, target, **options)
        (target / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tuned.shutil, "copytree", stopped)
        embed(config, items_dir, tmp_path / "b", previous=tmp_path / "a")
    assert (
        embed(config, items_dir, tmp_path / "b", previous=tmp_path / "a")["tuned"]["sha256"] == first["tuned"]["sha256"]
    )
    for text in ("", "[1", json.dumps({"steps": 3})):  # the tuning itself was stopped before its record was whole
        (tmp_path / "a" / "tuned" / tuned.RECORD).write_text(text)
        assert embed(config, items_dir, tmp_path / "a")["tuned"]["sha256"] == first["tuned"]["sha256"]


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_processes_tune_like_one(config, items_dir, tmp_path, method):
    """Each process encodes half of every batch; all see the whole batch as negatives. Dropout is off: it is random."""
    if method == "lora":
        pytest.importorskip("peft")
    update = {"method": method, "lora_dropout": 0.0, "lora_rank": 6, "lora_alpha": 48, "epochs": 2, "micro_batch": 5}
    folder = tmp_path / "model"
    model = resolve(config.model)
    from transformers import AutoModel, AutoTokenizer

    quiet = AutoModel.from_pretrained(model.folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    quiet.save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(model.folder).save_pretrained(folder)
    config = config.model_copy(update={"model": str(folder), "tune": TUNE.model_copy(update=update)})
    one = embed(config, items_dir, tmp_path / "one")
    two = embed(config.model_copy(update={"workers": 2}), items_dir, tmp_path / "two")
    assert two["tuned"]["processes"] == 2 and one["tuned"]["processes"] == 1 and one["tuned"]["best_step"] > 0
    a, b = (load_item_table(IDS, tmp_path / name / "vectors").vectors for name in ("one", "two"))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_pairs_never_hold_validation_or_test_items(config, items_dir, sequences_dir, tmp_path):
    source = resolve(config.model)
    shards, _, _ = plan_shards(items_dir, IDS)
    from llmcfsr_merlin.text.embed import make_recipe

    encoder = ItemEncoder(make_recipe(config, source), source, device="cpu")
    _, codes = tuned.gather_items(encoder, shards, IDS, 1000)
    neighbours = tuned.training_neighbours(sequences_dir, codes, len(IDS))
    pairs = {
        (int(codes[item]), int(codes[other]))
        for item in range(len(codes))
        for other in neighbours.items[neighbours.starts[item] : neighbours.starts[item + 1]]
    }
    assert pairs == {(3, 5), (5, 3), (5, 7), (7, 5), (4, 8), (8, 4), (8, 9), (9, 8), (9, 10), (10, 9)}
    with_pairs = config.model_copy(update={"tune": TUNE.model_copy(update={"cooccurrence": 0.5})})
    assert embed(with_pairs, items_dir, tmp_path / "a", sequences_dir=sequences_dir)["tuned"]["steps"] > 0
    with pytest.raises(InputError, match="expected the sequences"):
        embed(with_pairs, items_dir, tmp_path / "b")


@pytest.fixture(scope="session")
def tiny_writer(tiny_llama, tmp_path_factory):
    """A LLaMA with a language-model head, random weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "writer"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_llama)).save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


def test_enrichment_is_marked_and_cached(config, tiny_writer, items_dir, tmp_path, monkeypatch):
    enrich = EnrichConfig(enabled=True, model=str(tiny_writer), fewer_than=3, max_new_tokens=6)
    config = config.model_copy(update={"enrich": enrich, "tune": TuneConfig()})
    counts = embed(config, items_dir, tmp_path / "a")
    cached = pq.read_table(tmp_path / "a" / "enriched")
    assert len(cached) == 1 and counts["enriched"]["model"]["name"] == str(tiny_writer)  # only item 4 is sparse
    enricher = enrichment.Enricher(enrich, resolve(str(tiny_writer)), tmp_path / "a" / "enriched", "cpu")
    monkeypatch.setattr(enricher, "_generate", None)  # a second generation would fail
    full, empty = [("title", "x"), ("brand", "y"), ("categories", "z")], []
    sparse = ItemEncoder.load(tmp_path / "a", device="cpu").prompter.attributes(catalogue()[4])
    rows = enricher([full, empty, sparse])
    text = cached["text"][0].as_py()
    assert rows[0] == full and rows[1] == empty
    assert rows[2] == ([*sparse, (enrichment.MARK, text)] if text else sparse)
    plain = embed(
        config.model_copy(update={"enrich": EnrichConfig()}), items_dir, tmp_path / "b", previous=tmp_path / "a"
    )
    assert plain["cached"] == 0 and plain["enriched"] is None


def test_settings_that_contradict_are_refused():
    with pytest.raises(InputError, match=r"enrich\.model"):
        Config.load(None, ["embed.enrich.enabled=true"])
    with pytest.raises(InputError, match=r"tune\.method=lora"):
        Config.load(None, ["embed.tune.enabled=true", "embed.quantisation=4bit"])
    with pytest.raises(InputError, match="needs reduction"):
        Config.load(None, ["embed.dimension=8"])


def test_tuning_is_followed_by_report_to(config, items_dir, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = Watch(("tensorboard",), tmp_path / "logs", "shop/embed.tune")
    counts = embed(config, items_dir, tmp_path / "a", watch=watch)
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard" / "shop-embed.tune"))
    events.Reload()
    found = [event.value for event in events.Scalars("eval/retrieval")]
    assert found == pytest.approx([score for _, score in counts["tuned"]["history"]], abs=1e-5)
