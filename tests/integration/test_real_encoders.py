"""Real language models, where `llmcfsr encoders get` brought them: encoding, tuning and enrichment."""

import numpy as np
import pytest

from llmcfsr_merlin.config.embed_settings import EnrichConfig
from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.enrichment import MARK, Enricher
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.prompts import Prompter
from llmcfsr_merlin.text.tuning.lora import load_adapter
from llmcfsr_merlin.text.tuning.tune import tune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PAIRS = [  # two texts of one thing, by other words
    ("a red lipstick with a satin finish", "satiny crimson colour for the lips"),
    ("shampoo for dry and damaged hair", "cleanser that repairs brittle hair"),
    ("sun cream with protection factor 50", "lotion that blocks ultraviolet rays"),
    ("electric razor for men", "shaver with a motor for the beard"),
    ("perfume with notes of jasmine", "fragrance that smells of flowers"),
    ("cotton pads to remove make-up", "soft discs to wipe off mascara"),
]


def source(name):
    try:
        return resolve(name)
    except InputError as error:
        pytest.skip(str(error))


def items(count=40):
    """Brand and kind of an item belong together."""
    brands = {
        "OPI": "nail polish",
        "Olay": "face cream",
        "Gillette": "razor",
        "Dove": "shower gel",
        "Maybelline": "mascara",
    }
    colours = ("red", "blue", "clear", "rose")
    pairs = list(brands.items())
    return [
        [
            ("title", f"{colours[n % 4]} {pairs[n % 5][1]} {n}"),
            ("brand", pairs[n % 5][0]),
            ("categories", pairs[n % 5][1]),
        ]
        for n in range(count)
    ]


@pytest.mark.parametrize(("name", "pooling", "dimensions"), [("mpnet", "mean", 768), ("gemma3-270m", "last", 640)])
def test_vectors_say_what_belongs_together(name, pooling, dimensions):
    encoder = TextEncoder.load(source(name), pooling=pooling, device="cpu")
    left, right = (encoder.encode(list(texts)) for texts in zip(*PAIRS))
    assert left.shape == (len(PAIRS), dimensions)
    centre = np.concatenate([left, right]).mean(0)  # a causal model's vectors share one large direction
    scores = (left - centre) @ (right - centre).T
    found = (scores.argmax(1) == np.arange(len(PAIRS))).sum()
    assert found == len(PAIRS) if name == "mpnet" else found >= 3  # by chance: one
    alone = encoder.encode([PAIRS[0][0]])
    np.testing.assert_allclose(alone[0], left[0], atol=1e-4)  # what a batch is padded with changes nothing


def test_lora_tunes_a_causal_model_and_its_adapter_loads(tmp_path):
    model = source("gemma3-270m")
    settings = TuneConfig(
        enabled=True, method="lora", epochs=2, batch_size=8, learning_rate=1e-3, evaluate_every=3, holdout=0.4
    )
    encoder = TextEncoder.load(model, pooling="last", device="cpu", max_tokens=32)
    texts = ["red nail polish by OPI", "a razor by Gillette"]
    before = encoder.encode(texts)
    done = tune(encoder, items(), Prompter.of("beauty"), settings, tmp_path)
    assert done["steps"] == 6 and done["trained_parameters"] < 5_000_000
    assert done["retrieval"] > done["retrieval_before"]
    again = TextEncoder.load(model, pooling="last", device="cpu", max_tokens=32)
    again.model = load_adapter(again.model, tmp_path).eval()
    assert np.abs(again.encode(texts) - before).max() > 1e-3


def test_a_causal_model_writes_attributes_of_sparse_items(tmp_path):
    rows = [[("title", row[0][1]), ("brand", row[1][1])] for row in items(12)]
    settings = EnrichConfig(enabled=True, model="gemma3-270m", max_new_tokens=16)
    made = Enricher(settings, source("gemma3-270m"), tmp_path, "cpu")(rows)
    written = [row[-1] for row in made]
    assert all(label == MARK for label, _ in written) and len({text for _, text in written}) > 3
    assert all(len(text.split()) > 2 for _, text in written)
    assert Enricher(settings, source("gemma3-270m"), tmp_path, "cpu")(rows) == made  # from the cache
