import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.dataset.item_vectors import vectors_column
from llmcfsr_merlin.text.diagnostics.intrinsic import (
    brand_retrieval,
    category_retrieval,
    isotropy,
    neighbours,
    next_item_retrieval,
)
from llmcfsr_merlin.text.diagnostics.reference_vectors import tfidf_svd, word_vectors
from llmcfsr_merlin.text.diagnostics.vector_report import Catalogue, summary, validation_pairs, vectors_report


def groups(count=12, size=4):
    """Vectors in `count // size` tight groups."""
    rng = np.random.default_rng(0)
    centres = np.eye(count // size)
    return np.repeat(centres, size, axis=0) + rng.normal(scale=0.01, size=(count, count // size))


def test_neighbours_leave_the_query_out_and_are_sorted():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.5, 0.5]])
    assert neighbours(vectors, np.array([0, 2]), 3).tolist() == [[1, 3, 2], [3, 1, 0]]


def test_brand_retrieval_is_one_for_groups_and_chance_for_noise():
    brands = np.repeat(["a", "b", ""], 4).tolist()
    perfect = brand_retrieval(groups(), np.arange(12), brands, k=3)
    assert perfect == {"precision": 1.0, "chance": pytest.approx(3 / 11, abs=1e-4), "queries": 8}
    noise = np.random.default_rng(1).normal(size=(2000, 8))
    found = brand_retrieval(noise, np.arange(2000), [str(n % 4) for n in range(2000)], k=10)
    assert found["precision"] == pytest.approx(found["chance"], abs=0.02)
    assert brand_retrieval(groups(), np.arange(12), [""] * 12)["precision"] is None


def test_category_retrieval_is_the_overlap():
    categories = [frozenset({"x", str(n // 4)}) for n in range(12)]
    assert category_retrieval(groups(), np.arange(12), categories, k=3)["overlap"] == 1.0
    assert category_retrieval(groups(), np.arange(12), [frozenset()] * 12)["overlap"] is None


def test_next_item_ranks_by_hand():
    vectors = np.array([[1.0, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]])
    sources, targets = np.array([0, 0, 1]), np.array([1, 3, 1])  # ranks 1 and 3; the pair of 1 with itself is left out
    found = next_item_retrieval(vectors, sources, targets, np.array([9, 9, 9, 1]), tail_below=2, k=2)
    assert found["all"] == {"hr@2": 0.5, "mrr": pytest.approx(2 / 3, abs=1e-4), "pairs": 2}
    assert found["head"]["hr@2"] == 1.0 and found["tail"] == {
        "hr@2": 0.0,
        "mrr": pytest.approx(1 / 3, abs=1e-4),
        "pairs": 1,
    }


def test_isotropy_of_a_cloud_and_of_a_cone():
    cloud = np.random.default_rng(0).normal(size=(4000, 10))
    assert abs(isotropy(cloud)["mean_cosine"]) < 0.02 and isotropy(cloud)["effective_dimension"] > 9.5
    assert isotropy(cloud + 10)["mean_cosine"] > 0.9


@pytest.mark.parametrize("kind", [tfidf_svd, word_vectors])
def test_baselines_group_what_shares_words(kind):
    pytest.importorskip("sklearn")
    hair = [f"title: {a} shampoo hair {b}" for a in ("soft", "dry") for b in ("wash", "care", "daily")]
    nail = [f"title: {a} polish nail {b}" for a in ("red", "blue") for b in ("gloss", "matte", "quick")]
    vectors = kind(hair + nail, 4)
    again = kind(hair + nail, 4)
    similar = vectors @ vectors.T
    inside = (similar[:6, :6].mean() + similar[6:, 6:].mean()) / 2
    assert inside > similar[:6, 6:].mean() + 0.3 and vectors.dtype == np.float32
    np.testing.assert_allclose(similar, again @ again.T, atol=1e-4)


@pytest.fixture
def run_dir(tmp_path):
    """A finished run of 40 items in four groups, without the models."""
    for folder in ("ingest/items", "prepare/sequences", "embed/vectors"):
        (tmp_path / folder).mkdir(parents=True)
    ids = [f"i{n}" for n in range(40)]
    table = {
        "item_id": ids[::-1],
        "title": [f"title {i}" for i in ids[::-1]],
        "categories": [[f"c{int(i[1:]) // 10}"] for i in ids[::-1]],
    }
    pq.write_table(pa.table(table), tmp_path / "ingest/items/part-00000.parquet")
    vocabulary = {"item_id": ids, "code": list(range(3, 43)), "train_count": list(range(40, 0, -1))}
    pq.write_table(pa.table(vocabulary), tmp_path / "prepare/vocabulary.parquet")
    rows = pa.array([[3, 4, 5, 6], [13, 14, 15], [3, 4]], type=pa.list_(pa.int64()))
    pq.write_table(
        pa.table({"user_id": ["a", "b", "c"], "item_id": rows}), tmp_path / "prepare/sequences/part-00000.parquet"
    )
    vectors = {"item_id": ids, "vector": vectors_column(groups(40, 10)), "has_text": [True] * 39 + [False]}
    pq.write_table(pa.table(vectors), tmp_path / "embed/vectors/part-00000.parquet")
    return tmp_path


def test_pairs_are_of_validation_and_never_of_test(run_dir):
    sources, targets = validation_pairs(run_dir / "prepare/sequences")
    assert sorted(zip(sources.tolist(), targets.tolist())) == [(1, 2), (10, 11)]


def test_catalogue_is_joined_by_id(run_dir):
    items = Catalogue.read(run_dir)
    assert items.titles[7] == "title i7" and items.categories[25] == {"c2"}


def test_report_is_written(run_dir, tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("sklearn")
    figures = vectors_report(run_dir, tmp_path / "report", tail_below=5)
    assert figures["category_overlap@10"]["overlap"] > 0.85 and figures["same_brand@10"]["queries"] == 0
    assert figures["next_item"]["all"]["pairs"] == 2 and figures["without_text"] == 1
    assert "(2 validation pairs)" in summary(figures) and "same brand among the 10 nearest      -" in summary(figures)
    assert (tmp_path / "report/map.png").read_bytes()[:4] == b"\x89PNG"
    assert "title i0 (in training 40 times)" in (tmp_path / "report/neighbours.txt").read_text()
