"""The network: causal, blind to padding, the same packed and padded; switches do what they say."""

import pytest
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.ranker import Ranker

ROWS, LENGTH, DIMENSION = 60, 12, 16
LEVELS = ("fuse_embedding", "fuse_sequence", "fuse_prediction")
VARIANTS = {
    "llm_cfsr": {},
    "lexical": {"lexical": 8},
    "no_fusion": dict.fromkeys(LEVELS, False),
    "semantic_only": {"views": ("semantic",)},
    "id_only": {"views": ("collaborative",), "content_match": False, "transition_neighbours": 0, "pca_init": False},
    "llm_init": {"views": ("collaborative",), "content_match": False},
}


def build(seed: int = 0, lexical: int | None = None, **settings) -> DualViewNetwork:
    """A random network of every part; weights that start at zero are drawn too, so that each part matters."""
    torch.manual_seed(seed)
    config = ModelConfig(**{"hidden": 16, "transition_neighbours": 4} | settings)
    network = DualViewNetwork(config, ROWS, LENGTH, DIMENSION if config.needs_vectors else None, lexical)
    vectors = torch.randn(ROWS, DIMENSION)
    vectors[:FIRST_ITEM] = 0
    counts = torch.randint(0, 20, (ROWS,))
    shape = (ROWS - FIRST_ITEM, config.transition_neighbours)
    followers = torch.randint(FIRST_ITEM, ROWS, shape), torch.rand(shape)
    followers = [F.pad(part, (0, 0, FIRST_ITEM, 0)) for part in followers] if config.transition_neighbours else None
    words = F.pad(torch.randn(ROWS - FIRST_ITEM, lexical), (0, 0, FIRST_ITEM, 0)) if lexical else None
    network.initialise(counts, vectors if config.needs_vectors else None, followers, words)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.normal_(std=0.3)
        network.gamma.fill_(2.0)
        network.cold_gamma.fill_(3.0)
        network.transition_gamma.fill_(0.5)
    return network.eval()


def histories(*rows: list[int]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


@pytest.fixture(params=VARIANTS, name="network")
def network_(request):
    return build(**VARIANTS[request.param])


def states(network, codes):
    with torch.inference_mode():
        return network.encode(network.embed(codes))


def test_changing_a_later_item_changes_no_earlier_state(network):
    base = torch.randint(FIRST_ITEM, ROWS, (4, 10))
    for place in range(1, 10):
        other = base.clone()
        other[:, place:] = (other[:, place:] - FIRST_ITEM + 1) % (ROWS - FIRST_ITEM) + FIRST_ITEM
        a, b = states(network, base), states(network, other)
        assert torch.equal(a[:, :place], b[:, :place])
        assert not torch.allclose(a[:, place], b[:, place])  # the test would see a change


def test_scores_do_not_depend_on_padding(network):
    ranker = Ranker(network)
    short = histories([5, 9, 30])
    for width in (4, 7, LENGTH):
        padded = torch.zeros(1, width, dtype=torch.long)
        padded[:, :3] = short
        torch.testing.assert_close(ranker.scores(padded), ranker.scores(short), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(network):
    rows = [[5], [9, 30, 4], list(range(3, 15))]
    ranker = Ranker(network)
    together = ranker.scores(histories(*rows))
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together[row : row + 1], ranker.scores(histories(alone)), rtol=1e-5, atol=1e-5)


def test_packed_states_equal_padded_ones(network):
    codes = histories([5, 9, 30, 8], [7], [4, 4, 6])
    packing = Packing(codes != PAD)
    with torch.inference_mode():
        packed = network.encode(network.embed(codes, packing), packing)
    torch.testing.assert_close(packed, packing.pack(states(network, codes)), rtol=1e-5, atol=1e-5)


def test_reserved_rows_are_never_ranked(network):
    codes, scores = Ranker(network).top_k(histories([5, 9]), k=ROWS)
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
    network = build()
    network.items.confidence[40] = 0
    before = Ranker(network).scores(histories([5, 9]))
    with torch.no_grad():
        network.items.collaborative.weight[40] += 10
    assert torch.equal(Ranker(network).scores(histories([5, 9])), before)


def test_an_unseen_item_is_not_pushed_down_as_a_negative():
    network = build(item_dropout=0).train()
    network.items.confidence[40], network.items.confidence[41] = 0, 1
    network.candidates(torch.tensor([40, 41])).sum().backward()
    gradient = network.items.collaborative.weight.grad
    assert not gradient[40].any()
    assert gradient[41].any()


def test_transitions_are_summed_with_the_age_of_the_item():
    network = build()
    network.next_codes.zero_()
    network.next_weights.zero_()
    network.next_codes[5, :2], network.next_weights[5, :2] = torch.tensor([9, 30]), torch.tensor([0.5, 0.1])
    network.next_codes[8, :1], network.next_weights[8, :1] = 30, 0.2
    found = network.transition_match(histories([5, 8], [8, 7, 5, 4], [7]))
    wanted = torch.zeros(3, ROWS)
    wanted[0, 9], wanted[0, 30] = 0.8 * 0.5, 0.8 * 0.1 + 0.2
    wanted[1, 9], wanted[1, 30] = 0.8 * 0.5, 0.8 * 0.1 + 0.8**3 * 0.2
    torch.testing.assert_close(found, torch.log1p(100 * wanted))


def test_content_match_is_the_largest_cosine_of_the_history():
    network = build()
    unit = network.catalogue().unit_vectors
    history = histories([5, 9, 30], [7])
    found = network.content_match(history, unit)
    for row, items in enumerate(([5, 9, 30], [7])):
        wanted = torch.stack([unit @ unit[item] for item in items]).max(0).values
        torch.testing.assert_close(found[row], wanted)
    torch.testing.assert_close(network.content_match_all(history, unit @ unit.T), found)
    some = torch.tensor([[10, 11], [12, 13]])
    torch.testing.assert_close(network.content_match(history, unit, some), found.gather(1, some))


def test_the_content_match_is_the_mean_of_both_cosines_by_the_share():
    def match(network, history):
        return network.content_match(history, network.catalogue().unit_vectors)

    history = histories([9])  # of one item, so that the largest cosine is the only one
    network = build(lexical=8, lexical_share=0.3)
    with torch.no_grad():
        network.lexical[20] = 0  # no word that another item has
    words = F.normalize(network.lexical, dim=-1)
    alone = F.normalize(network.items.vectors, dim=-1)
    wanted = 0.7 * alone @ alone[9] + 0.3 * words @ words[9]
    torch.testing.assert_close(match(network, history)[0], wanted)
    torch.testing.assert_close(wanted[20], 0.7 * alone[20] @ alone[9])
    network.config = network.config.model_copy(update={"lexical_share": 0.0})
    torch.testing.assert_close(match(network, history)[0], alone @ alone[9])
    network.config = network.config.model_copy(update={"lexical_share": 1.0})
    torch.testing.assert_close(match(network, history)[0], words @ words[9])


def test_lexical_vectors_change_the_match_and_nothing_else():
    with_words, without = build(lexical=8), build()
    without.load_state_dict({name: part for name, part in with_words.state_dict().items() if name != "lexical"})
    history = histories([5, 9, 30], [7])
    ranked = [Ranker(network).scores(history) for network in (with_words, without)]
    assert not torch.allclose(*ranked)
    for network in (with_words, without):
        network.gamma.zero_()
        network.cold_gamma.zero_()
    torch.testing.assert_close(*(Ranker(network).scores(history) for network in (with_words, without)))


def test_whitened_vectors_have_unit_covariance_and_pca_starts_the_table():
    network = build()
    items = network.items
    whitened = (items.vectors[FIRST_ITEM:] - items.center) @ items.whitening
    covariance = torch.cov(whitened.T) * DIMENSION
    torch.testing.assert_close(covariance, torch.eye(DIMENSION), rtol=0.1, atol=0.1)
    torch.testing.assert_close(items(torch.arange(FIRST_ITEM, ROWS))[1], items.semantic(whitened), rtol=1e-4, atol=1e-5)
    start = items.collaborative.weight[FIRST_ITEM:]
    assert torch.corrcoef(start.T).triu(1).abs().max() < 1e-3  # principal components do not correlate


RIVALS = {
    "gru4rec": {"backbone": "gru4rec"},
    "bert4rec": {"backbone": "bert4rec"},
    "null_space": {"views": ("null_space",)},
    "replace": {"cross_attention": "replace"},
}


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_ignore_padding_and_the_batch(name):
    ranker = Ranker(build(**RIVALS[name]))
    rows = [[5, 9, 30], [7], list(range(3, 15))]
    together = ranker.scores(histories(*rows))
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together[row : row + 1], ranker.scores(histories(alone)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gru4rec", "null_space", "replace"])
def test_causal_rivals_do_not_leak(name):
    network = build(**RIVALS[name])
    base = torch.randint(FIRST_ITEM, ROWS, (4, 10))
    other = base.clone()
    other[:, 6:] = base[:, 6:].flip(0) + 0
    other[:, 6] = (base[:, 6] - FIRST_ITEM + 1) % (ROWS - FIRST_ITEM) + FIRST_ITEM
    assert torch.equal(states(network, base)[:, :6], states(network, other)[:, :6])


def test_bert4rec_reads_both_ways_and_never_the_hidden_item():
    """At a mask, the state depends on what comes after it, and not on what it hides."""
    from llmcfsr_merlin.scoring.network.item_views import MASK

    network = build(backbone="bert4rec")
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
    network = build(views=("null_space",))
    (view,) = network.items(torch.arange(FIRST_ITEM, ROWS))
    assert view.shape == (ROWS - FIRST_ITEM, 16)
    covariance = torch.cov(view[:, :8].T) * 16
    torch.testing.assert_close(covariance, torch.eye(8), rtol=0.1, atol=0.1)
    trained = {name for name, weight in network.items.named_parameters() if weight.requires_grad}
    assert trained == {"null_space.weight"}


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "llm_init", "llmemb", "llm_esr", "alphafuse"])
def test_the_models_that_ship_are_what_their_names_say(name):
    from llmcfsr_merlin.config.load import Config

    model = Config.load(None, model=name).model
    assert model.name == name
    network = DualViewNetwork(model, ROWS, LENGTH, DIMENSION if model.needs_vectors else None)
    ids_only = name in ("sasrec", "bert4rec", "gru4rec")
    assert model.needs_vectors != ids_only
    assert (network.items.semantic is not None) == (name in ("llmemb", "llm_esr"))
    assert (network.fuse_embedding is not None) == (name == "llm_esr")
    assert network.fuse_user is None
    assert not model.content_match
