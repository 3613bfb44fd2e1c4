import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.language_models import load_model, resolve
from llmcfsr_merlin.text.prompts import Prompter
from llmcfsr_merlin.text.tuning import tune as tuning
from llmcfsr_merlin.text.tuning.contrastive import cached_backward, info_nce, length_chunks
from llmcfsr_merlin.text.tuning.lora import load_adapter
from llmcfsr_merlin.text.tuning.pairs import Neighbours, PairSampler
from llmcfsr_merlin.text.tuning.tune import attribute_retrieval, holdout_positions, tune
from llmcfsr_merlin.text.tuning.tuning_state import load_checkpoint

PROMPTER = Prompter.of("beauty")
SETTINGS = TuneConfig(
    enabled=True,
    epochs=6,
    batch_size=16,
    micro_batch=64,
    learning_rate=5e-3,
    evaluate_every=4,
    patience=50,
    holdout=0.2,
)


def items(count=80):
    """Title, brand and category of an item share its colour: a rule that a model can learn from the pairs."""
    colours = ("red", "blue", "green")
    brands, kinds = ("acme", "bolt", "corex"), ("hair", "nail", "skin")
    things = ("shampoo", "polish", "cream", "soap")
    return [
        [
            ("title", f"{colours[n % 3]} {things[n % 4]} {n}"),
            ("brand", f"{brands[n % 3]} {n % 7}"),
            ("categories", f"{kinds[n % 3]} {n % 7}"),
        ]
        for n in range(count)
    ]


def load(folder, **options):
    return TextEncoder.load(resolve(str(folder)), device="cpu", **options)


def test_info_nce_equals_its_definition():
    left = torch.nn.functional.normalize(torch.randn(5, 4), dim=1)
    right = torch.nn.functional.normalize(torch.randn(5, 4), dim=1)
    left_mask, right_mask = torch.rand(5, 5) > 0.6, torch.rand(5, 5) > 0.6
    left_mask.fill_diagonal_(False), right_mask.fill_diagonal_(False)
    expected = 0.0
    for a, b, mask in ((left, right, left_mask), (right, left, right_mask)):
        for i in range(5):
            kept = [j for j in range(5) if not mask[i, j]]
            scores = [float(a[i] @ b[j]) / 0.1 for j in kept]
            expected += np.log(np.exp(scores).sum()) - float(a[i] @ b[i]) / 0.1
    assert float(info_nce(left, right, 0.1, left_mask, right_mask)) == pytest.approx(expected / 10, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_caching_equals_the_plain_backward_pass(dropout):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 4))
    inputs = torch.randn(10, 6)
    outputs = []

    def forward(chunk):
        outputs.append(torch.nn.functional.normalize(net(inputs[chunk]), dim=1))
        return outputs[-1]

    def loss_gradient(vectors):
        leaf = vectors.clone().requires_grad_(True)
        loss = info_nce(leaf[:5], leaf[5:], 0.2)
        loss.backward()
        return float(loss.detach()), leaf.grad

    def gradients(size):
        net.zero_grad()
        outputs.clear()
        loss = cached_backward(forward, length_chunks([1] * 10, size), loss_gradient, lambda v, g, last: v.backward(g))
        return loss, [parameter.grad.clone() for parameter in net.parameters()]

    if dropout:  # the second forward pass of a chunk draws the dropout of its first
        gradients(4)
        for first, second in zip(outputs[:3], outputs[3:]):
            torch.testing.assert_close(first, second)
        return
    (one, plain), (many, cached) = gradients(10), gradients(3)
    assert one == pytest.approx(many)
    for a, b in zip(plain, cached):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_pairs_are_resampled_every_epoch_and_reproducible():
    sampler = PairSampler(items(), PROMPTER, batch_size=16, drop=0.4, seed=1)
    again = PairSampler(items(), PROMPTER, batch_size=16, drop=0.4, seed=1)
    first, second = list(sampler.epoch(0)), list(sampler.epoch(1))
    assert [b.left for b in first] == [b.left for b in again.epoch(0)] != [b.left for b in second]
    assert [b.left for b in sampler.epoch(0, 3)] == [b.left for b in first[3:]]
    assert len(first) == 5 and all(len(set(batch.left)) > 8 for batch in first)


def test_items_that_a_copy_cannot_tell_apart_are_no_negatives():
    rows = [
        [("title", "a"), ("brand", "x")],
        [("title", "b"), ("brand", "x")],
        [("title", "a"), ("brand", "x")],
        [("title", "c"), ("brand", "y")],
    ]
    whole = PairSampler(rows, PROMPTER, batch_size=4, drop=0.0, seed=0).batch(range(4), 0)
    assert whole.left_mask.tolist() == [
        [False, False, True, False],
        [False, False, False, False],
        [True, False, False, False],
        [False, False, False, False],
    ]
    single = PairSampler(rows, PROMPTER, batch_size=4, drop=0.9, seed=0).batch(range(4), 0)
    for i, text in enumerate(single.left):
        label, value = text.split(": ")
        assert [bool(m) for m in single.left_mask[i]] == [j != i and (label, value) in rows[j] for j in range(4)]


def test_cooccurrence_pairs_come_from_the_given_sequences_only():
    rows = items(6)
    neighbours = Neighbours.of([np.array([0, 1]), np.array([2, -1, 3])], 6)
    sampler = PairSampler(rows, PROMPTER, batch_size=6, drop=0.0, seed=0, neighbours=neighbours, cooccurrence=1.0)
    batch = sampler.batch(range(6), 0)
    titles = [dict(row)["title"] for row in rows]
    for item, partner in ((0, 1), (1, 0), (2, 2), (3, 3), (4, 4)):
        assert titles[partner] in batch.right[item]


def test_holdout_is_never_trained_on(tiny_bert, tmp_path, monkeypatch):
    seen = []
    real = PairSampler.batch
    monkeypatch.setattr(
        PairSampler,
        "batch",
        lambda self, chosen, epoch: seen.append([self.items[i] for i in chosen]) or real(self, chosen, epoch),
    )
    record = tune(load(tiny_bert), items(), PROMPTER, SETTINGS.model_copy(update={"epochs": 1}), tmp_path / "t")
    held = holdout_positions(items(), 0.2, 42)
    used = {str(row) for batch in seen for row in batch}
    assert record["holdout"] == 16 and not used & {str(items()[position]) for position in held}


@pytest.mark.parametrize(("model", "method", "pooling"), [
    ("tiny_bert", "full", "mean"), ("tiny_bert", "lora", "mean"),
    ("tiny_llama", "lora", "last"), ("tiny_llama", "lora", "mean"),
])  # fmt: skip
def test_tuning_learns_and_is_stored(model, method, pooling, request, tmp_path):
    if method == "lora":
        pytest.importorskip("peft")
    folder = request.getfixturevalue(model)
    encoder = load(folder, pooling=pooling)
    before = encoder.encode(["title : red soap 1"])
    rate = 5e-3 if method == "full" else 2e-2
    settings = SETTINGS.model_copy(update={"method": method, "epochs": 8, "learning_rate": rate})
    record = tune(encoder, items(), PROMPTER, settings, tmp_path / "tuned")
    assert record["retrieval"] > record["retrieval_before"] + 0.05
    tuned = encoder.encode(["title : red soap 1"])
    assert np.abs(tuned - before).max() > 1e-3
    source = resolve(str(folder))
    if method == "full":
        again = load(tmp_path / "tuned", pooling=pooling)
    else:
        again = load(folder, pooling=pooling)
        again.model = load_adapter(load_model(source), tmp_path / "tuned")
    np.testing.assert_allclose(again.encode(["title : red soap 1"]), tuned, atol=1e-5)
    assert not list((tmp_path / "tuned").rglob("*.bin")) and not list((tmp_path / "tuned").rglob("*.p*t*"))
    assert json.dumps(record)


def test_lora_reaches_all_projections(tiny_llama, tiny_bert, tmp_path):
    pytest.importorskip("peft")
    from llmcfsr_merlin.text.tuning.lora import attach_lora

    for folder, per_layer in ((tiny_llama, 7), (tiny_bert, 6)):
        model = attach_lora(load_model(resolve(str(folder))), TuneConfig(method="lora"))
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert len(trainable) == 2 * 2 * per_layer and not any("pooler" in name for name in trainable)


def test_lora_reaches_all_projections_of_mpnet():
    pytest.importorskip("peft")
    from transformers import MPNetConfig, MPNetModel

    from llmcfsr_merlin.text.tuning.lora import attach_lora

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = attach_lora(MPNetModel(MPNetConfig(vocab_size=20, **sizes)), TuneConfig(method="lora"))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 2 * 6 and not any("pooler" in name for name in trainable)


def tune_and_stop(folder, settings, out, monkeypatch, batch):
    """Tuning that is interrupted at a micro-batch, counted from 1; what it saved stays in out."""
    real, calls = tuning._backward, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == batch:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tuning, "_backward", dies)
        tune(load(folder), items(), PROMPTER, settings, out)


def test_killed_tuning_resumes_to_the_same_weights(tiny_bert, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"epochs": 3, "micro_batch": 10, "accumulation": 2, "evaluate_every": 2})
    whole = load(tiny_bert)
    expected = tune(whole, items(), PROMPTER, settings, tmp_path / "whole")
    tune_and_stop(tiny_bert, settings, tmp_path / "cut", monkeypatch, batch=8)
    random.seed(99), torch.manual_seed(99)
    resumed = load(tiny_bert)
    record = tune(resumed, items(), PROMPTER, settings, tmp_path / "cut")
    assert record["history"] == expected["history"] and record["steps"] == expected["steps"]
    np.testing.assert_allclose(resumed.encode(["red soap"]), whole.encode(["red soap"]), atol=1e-6)


@pytest.mark.parametrize("file", ["checkpoint/checkpoint.safetensors", "best.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "header", "gone"])
def test_a_damaged_checkpoint_is_started_over(file, damage, tiny_bert, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"epochs": 3, "evaluate_every": 2})
    whole = load(tiny_bert)
    expected = tune(whole, items(), PROMPTER, settings, tmp_path / "whole")
    tune_and_stop(tiny_bert, settings, tmp_path / "cut", monkeypatch, batch=5)
    path = tmp_path / "cut" / file
    raw = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": raw[: len(raw) // 2], "header": b"\xff" * 16 + raw[16:], "gone": b""}[damage]
    )
    if damage == "gone":
        path.unlink()
    resumed = load(tiny_bert)
    record = tune(resumed, items(), PROMPTER, settings, tmp_path / "cut")
    assert record["history"] == expected["history"]
    np.testing.assert_allclose(resumed.encode(["red soap"]), whole.encode(["red soap"]), atol=1e-6)


def test_a_checkpoint_of_another_model_is_started_over(tiny_bert, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 1})
    tune(load(tiny_bert), items(), PROMPTER, settings, tmp_path / "t")
    other = {"x": torch.nn.Parameter(torch.zeros(3))}
    optimizer = torch.optim.AdamW(other.values())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    fresh = {"step": 0}
    assert load_checkpoint(tmp_path / "t" / tuning.CHECKPOINT, other, optimizer, schedule, fresh) is fresh
    assert not other["x"].any()


def test_early_stop_keeps_the_best_weights(tiny_bert, tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-9, "patience": 2, "evaluate_every": 1})
    record = tune(load(tiny_bert), items(), PROMPTER, settings, tmp_path / "t")
    assert record["steps"] <= 4


def test_bf16_and_gradient_checkpointing_train(tiny_llama, tmp_path):
    pytest.importorskip("peft")
    settings = SETTINGS.model_copy(
        update={
            "method": "lora",
            "epochs": 1,
            "precision": "bfloat16",
            "gradient_checkpointing": True,
            "micro_batch": 8,
        }
    )
    record = tune(load(tiny_llama, dtype="bfloat16"), items(), PROMPTER, settings, tmp_path / "t")
    assert record["steps"] == 4
    adapter = load_file(str(tmp_path / "t" / "adapter_model.safetensors"))
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)  # B starts at zero


def test_too_few_items_is_one_clear_line(tiny_bert, tmp_path):
    with pytest.raises(InputError, match="at least 10 items"):
        tune(load(tiny_bert), items(5), PROMPTER, SETTINGS, tmp_path / "t")


def test_attribute_retrieval_is_perfect_for_a_perfect_encoder():
    class Perfect:
        def encode(self, texts):
            number = [int(text.rsplit(" ", 1)[-1]) for text in texts]
            return np.eye(8, dtype=np.float32)[number]

    rows = [[("title", f"x {n}"), ("brand", f"y {n}")] for n in range(8)]
    assert attribute_retrieval(Perfect(), rows, PROMPTER) == 1.0
