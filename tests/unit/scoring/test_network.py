"""The network: causal, blind to padding, the same packed and padded; switches do what they say."""

import pytest
import torch

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.ranker import Ranker
from tests.models import model_config, random_model

ROWS, LENGTH, DIMENSION = 60, 12, 16
IDS_ONLY = (
    "sasrec", "bert4rec", "gru4rec", "bsarec", "sasrec_prefix", "cl4srec", "caser", "asrep", "s3rec", "melt", "cities",
    "emkd", "said", "tslrec",
)  # fmt: skip
LEVELS = ("fuse_embedding", "fuse_sequence", "fuse_prediction")
VARIANTS = {
    "llm_cfsr": {},
    "lexical": {"lexical": 8},
    "no_fusion": dict.fromkeys(LEVELS, False),
    "semantic_only": {"views": ("semantic",)},
    "id_only": {"views": ("collaborative",), "content_match": False, "transition_neighbours": 0, "pca_init": False},
    "llm_init": {"views": ("collaborative",), "content_match": False},
}


def build(seed: int = 0, lexical: int | None = None, **settings) -> Ensemble:
    """A random model of every part; weights that start at zero are drawn too, so that each part matters."""
    config = model_config(**{"transition_neighbours": 4, **settings})
    return random_model(config, ROWS, LENGTH, DIMENSION, lexical, seed=seed)


def network_of(model: Ensemble) -> DualViewNetwork:
    return model.scorers["network"].network


def histories(*rows: list[int]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


@pytest.fixture(params=VARIANTS, name="model")
def model_(request):
    return build(**VARIANTS[request.param])


def states(network, codes):
    with torch.inference_mode():
        return network.encode(network.embed(codes))


def test_changing_a_later_item_changes_no_earlier_state(model):
    network = network_of(model)
    base = torch.randint(FIRST_ITEM, ROWS, (4, 10))
    for place in range(1, 10):
        other = base.clone()
        other[:, place:] = (other[:, place:] - FIRST_ITEM + 1) % (ROWS - FIRST_ITEM) + FIRST_ITEM
        a, b = states(network, base), states(network, other)
        assert torch.equal(a[:, :place], b[:, :place])
        assert not torch.allclose(a[:, place], b[:, place])  # the test would see a change


def test_scores_do_not_depend_on_padding(model):
    ranker = Ranker(model)
    short = histories([5, 9, 30])
    for width in (4, 7, LENGTH):
        padded = torch.zeros(1, width, dtype=torch.long)
        padded[:, :3] = short
        torch.testing.assert_close(ranker.scores(padded), ranker.scores(short), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(model):
    rows = [[5], [9, 30, 4], list(range(3, 15))]
    ranker = Ranker(model)
    together = ranker.scores(histories(*rows))
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together[row : row + 1], ranker.scores(histories(alone)), rtol=1e-5, atol=1e-5)


def test_packed_states_equal_padded_ones(model):
    network = network_of(model)
    codes = histories([5, 9, 30, 8], [7], [4, 4, 6])
    packing = Packing(codes != PAD)
    with torch.inference_mode():
        packed = network.encode(network.embed(codes, packing), packing)
    torch.testing.assert_close(packed, packing.pack(states(network, codes)), rtol=1e-5, atol=1e-5)


def test_reserved_rows_are_never_ranked(model):
    codes, scores = Ranker(model).top_k(histories([5, 9]), k=ROWS)
    assert codes.min() >= FIRST_ITEM
    assert torch.isfinite(scores).all()
    assert len(set(codes[0].tolist())) == ROWS - FIRST_ITEM


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_of_fusion_changes_the_scores(level):
    history = histories([5, 9, 30])
    with_it, without = build(), build(**{level: False})
    shared = {name: weight for name, weight in with_it.state_dict().items() if name in without.state_dict()}
    without.load_state_dict(shared)
    assert set(with_it.state_dict()) - set(shared), "the switch removes the part's weights"
    assert not torch.allclose(Ranker(with_it).scores(history)[:, 3:], Ranker(without).scores(history)[:, 3:])


def test_an_unseen_item_is_scored_by_its_text_alone():
    model = build()
    network = network_of(model)
    network.items.confidence[40] = 0
    before = Ranker(model).scores(histories([5, 9]))
    with torch.no_grad():
        network.items.collaborative.weight[40] += 10
    assert torch.equal(Ranker(model).scores(histories([5, 9])), before)


def test_an_unseen_item_is_not_pushed_down_as_a_negative():
    network = network_of(build(item_dropout=0)).train()
    network.items.confidence[40], network.items.confidence[41] = 0, 1
    network.candidates(torch.tensor([40, 41])).sum().backward()
    gradient = network.items.collaborative.weight.grad
    assert not gradient[40].any()
    assert gradient[41].any()


def test_whitened_vectors_have_unit_covariance_and_pca_starts_the_table():
    items = network_of(build()).items
    whitened = (items.vectors.semantic[FIRST_ITEM:] - items.center) @ items.whitening
    covariance = torch.cov(whitened.T) * DIMENSION
    torch.testing.assert_close(covariance, torch.eye(DIMENSION), rtol=0.1, atol=0.1)
    torch.testing.assert_close(items(torch.arange(FIRST_ITEM, ROWS))[1], items.semantic(whitened), rtol=1e-4, atol=1e-5)
    start = items.collaborative.weight[FIRST_ITEM:]
    assert torch.corrcoef(start.T).triu(1).abs().max() < 1e-3  # principal components do not correlate
    torch.testing.assert_close(start.std(0), torch.full((start.shape[1],), start.shape[1] ** -0.5), rtol=1e-4, atol=0)


def test_unscaled_principal_components_keep_what_they_explain():
    items = network_of(build(hidden=DIMENSION, pca_scaled=False)).items
    start, vectors = items.collaborative.weight[FIRST_ITEM:], items.vectors.semantic[FIRST_ITEM:]
    centred = vectors - vectors.mean(0)
    torch.testing.assert_close(start @ start.T, centred @ centred.T, rtol=1e-4, atol=1e-4)
    assert (start.std(0).diff() < 0).all()


BASELINES = {
    "gru4rec": {"backbone": "gru4rec"},
    "bert4rec": {"backbone": "bert4rec"},
    "sasrec_post_norm": {"backbone": "sasrec_post_norm"},
    "sasrec_original": {"backbone": "sasrec_original", "initialisation": "xavier"},
    "from_end": {"positions": "from_end"},
    "bsarec": {"backbone": "bsarec", "views": ("collaborative",), "pca_init": False},
    "caser": {"backbone": "caser", "layers": 1, "views": ("collaborative",), "pca_init": False},
    "emkd": {"backbone": "emkd", "views": ("collaborative",), "pca_init": False},
    "null_space": {"views": ("null_space",)},
    "replace": {"cross_attention": "replace"},
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_ignore_padding_and_the_batch(name):
    ranker = Ranker(build(**BASELINES[name]))
    rows = [[5, 9, 30], [7], list(range(3, 15))]
    together = ranker.scores(histories(*rows))
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together[row : row + 1], ranker.scores(histories(alone)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*BASELINES, *VARIANTS])
def test_a_batch_that_is_mostly_padding_has_the_states_of_its_rows(name):
    """On the CPU it is computed without the padding; an empty history among them."""
    network = network_of(build(**(BASELINES | VARIANTS)[name]))
    rows = [list(range(3, 15)), [7], [], [5, 9], [8, 8], []]
    with torch.inference_mode():
        together = network.user_states(histories(*rows))
        for row, state in zip(rows, together):
            torch.testing.assert_close(state[None], network.user_states(histories(row or [PAD])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sasrec_post_norm", "sasrec_original", "from_end"])
def test_packed_states_of_baselines_equal_padded_ones(name):
    network = network_of(build(**BASELINES[name]))
    codes = histories([5, 9, 30, 8], [7], [4, 4, 6])
    packing = Packing(codes != PAD)
    with torch.inference_mode():
        packed = network.encode(network.embed(codes, packing), packing)
        last = network.packed_user_states(codes)
    torch.testing.assert_close(packed, packing.pack(states(network, codes)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, network.user_states(codes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["gru4rec", "sasrec_post_norm", "sasrec_original", "from_end", "null_space", "replace"]
)
def test_causal_baselines_do_not_leak(name):
    network = network_of(build(**BASELINES[name]))
    base = torch.randint(FIRST_ITEM, ROWS, (4, 10))
    other = base.clone()
    other[:, 6:] = base[:, 6:].flip(0) + 0
    other[:, 6] = (base[:, 6] - FIRST_ITEM + 1) % (ROWS - FIRST_ITEM) + FIRST_ITEM
    assert torch.equal(states(network, base)[:, :6], states(network, other)[:, :6])


def test_bert4rec_reads_both_ways_and_never_the_hidden_item():
    """At a mask, the state depends on what comes after it, and not on what it hides."""
    from llmcfsr_merlin.scoring.network.item_views import MASK

    network = network_of(build(backbone="bert4rec"))
    codes = histories([5, MASK, 30, 8], [7, 9, MASK])
    real = codes != PAD
    with torch.inference_mode():
        found = network.encode(network.embed(codes), real=real)
        later = network.encode(network.embed(codes.where(codes != 30, 31)), real=real)
        packing = Packing(real)
        packed = network.encode(network.embed(codes, packing), packing, real)
    assert not torch.allclose(found[0, 1], later[0, 1])
    torch.testing.assert_close(packed, packing.pack(found), rtol=1e-4, atol=1e-5)
    last = network.user_states(histories([5, 9], [7, 9, 4]))
    appended = histories([5, 9, MASK], [7, 9, 4, MASK])
    with torch.inference_mode():
        wanted = network.encode(network.embed(appended), real=appended != PAD)
    torch.testing.assert_close(last, torch.stack([wanted[0, 2], wanted[1, 3]]), rtol=1e-4, atol=1e-5)


def test_null_space_starts_from_whitened_leading_directions_and_trains_the_rest():
    network = network_of(build(views=("null_space",)))
    (view,) = network.items(torch.arange(FIRST_ITEM, ROWS))
    assert view.shape == (ROWS - FIRST_ITEM, 16)
    covariance = torch.cov(view[:, :8].T) * 16
    torch.testing.assert_close(covariance, torch.eye(8), rtol=0.1, atol=0.1)
    trained = {name for name, weight in network.items.named_parameters() if weight.requires_grad}
    assert trained == {"null_space.weight"}


@pytest.mark.parametrize("name", [*IDS_ONLY, "llm_init", "llmemb", "llm_esr", "alphafuse"])
def test_the_models_that_ship_are_what_their_names_say(name):
    config = Config.load(None, model=name).model
    assert (config.name, list(config.scorers)) == (name, ["network"])
    assert bool(config.reads) != (name in IDS_ONLY)
    network = network_of(random_model(config, ROWS, LENGTH, DIMENSION))
    assert (network.items.semantic is not None) == (name in ("llmemb", "llm_esr"))
    assert (network.fuse_embedding is not None) == (name == "llm_esr")
    assert network.fuse_user is None
