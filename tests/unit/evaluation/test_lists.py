"""The measures of recommended lists: by hand, and against plain loops of RecTools' and Steck's formulas."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.evaluation.lists import ItemFacts, ListSums


def test_spread_over_the_catalogue_by_hand():
    # Items 3..6 are recommended 2, 1, 1, 0 times in the top 2 of two users.
    sums = ListSums([1, 2], ItemFacts(np.array([0, 0, 0, 10, 4, 2, 1])))
    sums.add(np.array([[3, 4], [3, 5]]), np.array([6, 6]), np.array([[4], [4]]))
    values = sums.values()
    assert values["coverage@2"] == 3 / 4 and values["coverage@1"] == 1 / 4
    assert values["arp@2"] == (10 + 4 + 10 + 2) / 4 and values["arp@1"] == 10
    assert values["gini@2"] == pytest.approx((-3 * 0 - 1 * 1 + 1 * 1 + 3 * 2) / (4 * 4))
    assert values["gini@1"] == pytest.approx(3 / 4)


def test_empty_places_are_not_recommendations():
    facts = ItemFacts(np.array([0, 0, 0, 4, 1]), np.array([0, 0, 0, 4, 1]), 4)
    sums = ListSums([2], facts)
    sums.add(np.array([[3, 0], [4, 3]]), np.array([4, 4]), np.array([[3], [3]]))
    values = sums.values()
    assert values["coverage@2"] == 1.0 and values["arp@2"] == (4 + 1 + 4) / 3
    assert values["novelty@2"] == pytest.approx((0.0 + (2 + 0) / 2) / 2)


def test_a_list_of_one_item_has_no_diversity_and_users_without_categories_none_to_match():
    vectors = np.zeros((6, 2), np.float32)
    vectors[3:] = [[1, 0], [0, 1], [1, 0]]
    categories = sparse.csr_matrix(np.array([[0, 0]] * 4 + [[1, 0], [0, 1]], np.float32))
    sums = ListSums([2], ItemFacts(np.ones(6, np.int64), vectors=vectors, categories=categories))
    sums.add(np.array([[3, 0], [3, 4], [4, 5]]), np.array([3, 3, 3]), np.array([[3, 0], [3, 0], [4, 5]]))
    assert sums.values()["ild@2"] == pytest.approx(1.0)  # of the two lists of two: orthogonal both
    assert sums.values()["calibration@2"] == pytest.approx(0.0, abs=1e-9)  # the last user alone; p = q


def test_all_measures_against_plain_loops():
    generator = np.random.default_rng(0)
    items, users, k = 40, 60, 10
    rows = items + FIRST_ITEM
    counts = np.r_[np.zeros(FIRST_ITEM, np.int64), generator.integers(0, 8, items)]
    vectors = np.zeros((rows, 5), np.float32)
    vectors[FIRST_ITEM:] = generator.normal(size=(items, 5))
    vectors[FIRST_ITEM:] /= np.linalg.norm(vectors[FIRST_ITEM:], axis=1, keepdims=True)
    genres = [generator.choice(6, generator.integers(1, 4), replace=False) for _ in range(items)]
    shares = np.zeros((rows, 6), np.float32)
    for item, of in enumerate(genres):
        shares[FIRST_ITEM + item, of] = 1 / len(of)
    top = np.array([generator.permutation(items)[:k] + FIRST_ITEM for _ in range(users)])
    targets = generator.integers(FIRST_ITEM, rows, users)
    histories = generator.integers(FIRST_ITEM, rows, (users, 7))
    facts = ItemFacts(counts, counts, 30, vectors, sparse.csr_matrix(shares))
    sums = ListSums([3, k], facts)
    for start in range(0, users, 17):  # any cut into batches
        part = slice(start, start + 17)
        sums.add(top[part], targets[part], histories[part])
    values = sums.values()

    places = {count: place for place, count in enumerate(sorted({c for c in counts[FIRST_ITEM:] if c})[::-1], 1)}
    for size in (3, k):
        novelty, diversity, serendipity, calibration = [], [], [], []
        for row, target, history in zip(top[:, :size], targets, histories):
            # rectools.metrics.novelty: cold items count as if one user had them
            novelty.append(np.mean([-np.log2(max(counts[item], 1) / 30) for item in row]))
            # rectools.metrics.diversity, with a cosine distance
            pairs = [1 - vectors[a] @ vectors[b] for a in row for b in row if a != b]
            diversity.append(sum(pairs) / (size * (size - 1)))
            # rectools.metrics.serendipity
            found = 0.0
            for place, item in enumerate(row, 1):
                mine = (items + 1 - place) / items
                anybody = (items + 1 - places[counts[item]]) / items if counts[item] else 0.0
                found += max(mine - anybody, 0) * (item == target)
            serendipity.append(found / size)
            # Steck, RecSys 2018: KL(p || q~), alpha .01
            p, q = (shares[of].sum(0, dtype=np.float64) / len(of) for of in (history, row))
            q = 0.99 * q + 0.01 * p
            calibration.append(sum(a * np.log(a / b) for a, b in zip(p, q) if a))
        assert values[f"novelty@{size}"] == pytest.approx(np.mean(novelty))
        assert values[f"ild@{size}"] == pytest.approx(np.mean(diversity), abs=1e-5)
        assert values[f"serendipity@{size}"] == pytest.approx(np.mean(serendipity))
        assert values[f"calibration@{size}"] == pytest.approx(np.mean(calibration))


def test_against_rectools_itself():
    metrics = pytest.importorskip("rectools.metrics", reason="RecTools is not installed: it resolves on no profile")
    from llmcfsr_merlin.evaluation.metrics import MetricSums

    generator = np.random.default_rng(1)
    items, users, k = 50, 80, 10
    history = pd.DataFrame(
        {"user_id": generator.integers(0, users, 500), "item_id": generator.integers(0, items, 500) + FIRST_ITEM}
    ).drop_duplicates()
    top = np.array([generator.permutation(items)[:k] + FIRST_ITEM for _ in range(users)])
    targets = generator.integers(FIRST_ITEM, items + FIRST_ITEM, users)
    counts = np.bincount(history["item_id"], minlength=items + FIRST_ITEM)
    sums = ListSums([k], ItemFacts(counts, counts, history["user_id"].nunique()))
    sums.add(top, targets, targets[:, None])
    place = np.where((top == targets[:, None]).any(1), (top == targets[:, None]).argmax(1) + 1, items)
    ours = MetricSums([k])
    ours.add(place)
    reco = pd.DataFrame(
        {"user_id": np.repeat(np.arange(users), k), "item_id": top.ravel(), "rank": np.tile(np.arange(1, k + 1), users)}
    )
    test = pd.DataFrame({"user_id": np.arange(users), "item_id": targets})
    catalogue = np.arange(FIRST_ITEM, items + FIRST_ITEM)
    found = ours.means() | sums.values()
    for name, metric in {
        "hr": metrics.HitRate(k), "mrr": metrics.MRR(k), "novelty": metrics.MeanInvUserFreq(k),
        "serendipity": metrics.Serendipity(k), "coverage": metrics.CatalogCoverage(k, normalize=True),
        "arp": metrics.AvgRecPopularity(k), "ndcg": metrics.NDCG(k, divide_by_achievable=True), "map": metrics.MAP(k),
    }.items():  # fmt: skip
        told = metrics.calc_metrics({name: metric}, reco, test, history, catalogue)[name]
        assert found[f"{'mrr' if name == 'map' else name}@{k}"] == pytest.approx(told), name
