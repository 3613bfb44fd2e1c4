import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.embed_settings import EmbedConfig
from llmcfsr_merlin.dataset.item_vectors import load_item_table, vectors_column
from llmcfsr_merlin.dataset.vector_checks import check_encoded
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text import embed as embedding
from llmcfsr_merlin.text import language_models as models
from llmcfsr_merlin.text import shards
from llmcfsr_merlin.text.embed import embed_table, make_recipe
from llmcfsr_merlin.text.item_encoder import ItemEncoder, encode_items
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.reduction import Reduction

from .conftest import catalogue, write_items

IDS = [f"i{number}" for number in range(40)]


@pytest.fixture
def config(tiny_bert):
    return EmbedConfig(model=str(tiny_bert), template="beauty", batch_size=8, device="cpu")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards.plan_shards, "__defaults__", (6,))


def embed(config, items_dir, out, ids=IDS, previous=None):
    out.mkdir(parents=True)
    return embed_table(config, resolve(config.model), items_dir, ids, out, previous)


def test_rows_follow_the_vocabulary(config, items_dir, tmp_path):
    """Row r of the table is the vector of code r, whatever the order of the input rows."""
    counts = embed(config, items_dir, tmp_path / "a")
    rows = catalogue()
    random.Random(3).shuffle(rows)
    embed(config, write_items(tmp_path / "shuffled", rows, parts=3), tmp_path / "b")
    order = IDS[::-1]
    first, second = (load_item_table(order, tmp_path / name / "vectors") for name in "ab")
    np.testing.assert_allclose(first.vectors, second.vectors, atol=1e-6)
    assert (first.has_text == second.has_text).all() and not first.vectors[:3].any() and not first.has_text[:3].any()
    alone, _ = encode_items(tmp_path / "a", [row for row in catalogue() if row["item_id"] == "i7"], device="cpu")
    np.testing.assert_allclose(first.vectors[3 + order.index("i7")], alone[0], atol=1e-6)
    assert counts["without_text"] == 1 and counts["items"] == 40 and counts["dimension"] == 32


def test_items_without_text_or_metadata_get_the_mean(config, items_dir, tmp_path):
    counts = embed(config, items_dir, tmp_path / "a", [*IDS, "unseen"])
    table = load_item_table([*IDS, "unseen"], tmp_path / "a" / "vectors")
    with_text = table.vectors[3:][table.has_text[3:]]
    np.testing.assert_allclose(table.vectors[3 + 3], with_text.mean(0), atol=1e-6)
    np.testing.assert_allclose(table.vectors[-1], with_text.mean(0), atol=1e-6)
    assert not table.has_text[3 + 3] and not table.has_text[-1] and counts["without_metadata"] == 1


def test_only_the_vocabulary_is_encoded_and_once(config, tmp_path):
    folder = write_items(tmp_path / "items", catalogue() + catalogue(4))
    counts = embed(config, folder, tmp_path / "a", IDS[:10])
    assert counts["items"] == 10 and counts["repeated_rows"] == 4 and counts["not_in_vocabulary"] == 30


def test_killed_run_resumes_to_the_same_vectors(config, items_dir, tmp_path, monkeypatch):
    embed(config, items_dir, tmp_path / "whole")
    real, calls = shards._encode_shard, []

    def dies(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(shards, "_encode_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(config, items_dir, tmp_path / "cut")
    monkeypatch.setattr(shards, "_encode_shard", real)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "encoded").iterdir()}
    assert len(finished) == 3
    embed_table(config, resolve(config.model), items_dir, IDS, tmp_path / "cut")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "encoded").iterdir()}
    assert finished.items() <= again.items()
    whole, cut = (load_item_table(IDS, tmp_path / name / "vectors") for name in ("whole", "cut"))
    assert (whole.vectors == cut.vectors).all()


def test_two_workers_equal_one(config, items_dir, tmp_path):
    """Each worker does its own shards; together they write what one writes."""
    planned, _, _ = shards.plan_shards(items_dir, IDS)
    source = resolve(config.model)
    for name, workers in (("one", 1), ("two", 2)):
        for worker in range(workers):
            encoder = ItemEncoder(make_recipe(config, source), source, device="cpu")
            shards.encode_shards(planned, encoder, tmp_path / name, worker=worker, workers=workers)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_worker_processes_write_the_same(config, items_dir, tmp_path):
    embed(config, items_dir, tmp_path / "one")
    embed(config.model_copy(update={"workers": 2}), items_dir, tmp_path / "two")
    one, two = (load_item_table(IDS, tmp_path / name / "vectors") for name in ("one", "two"))
    assert (one.vectors == two.vectors).all()


def test_only_changed_items_are_encoded_again(config, items_dir, tmp_path):
    embed(config, items_dir, tmp_path / "a")
    rows = catalogue()
    rows[5]["title"] = "green soap 99"
    rows.append({"item_id": "new", "title": "blue cream 77"})
    folder = write_items(tmp_path / "changed", rows)
    counts = embed(config, folder, tmp_path / "b", [*IDS, "new"], previous=tmp_path / "a")
    assert counts["cached"] == 38 and counts["items"] == 41
    fresh = embed(config, folder, tmp_path / "c", [*IDS, "new"])
    assert fresh["cached"] == 0
    b, c = (load_item_table([*IDS, "new"], tmp_path / name / "vectors") for name in "bc")
    np.testing.assert_allclose(b.vectors, c.vectors, atol=1e-6)
    other = config.model_copy(update={"instruction": "Describe:"})
    assert embed(other, items_dir, tmp_path / "d", previous=tmp_path / "a")["cached"] == 0


@pytest.mark.parametrize("method", ["pca", "standardise"])
def test_reduction_is_fitted_stored_and_applied_to_new_items(config, items_dir, tmp_path, method):
    dimension = None if method == "standardise" else 5
    config = config.model_copy(update={"reduction": method, "dimension": dimension})
    embed(config, items_dir, tmp_path / "a")
    table = load_item_table(IDS, tmp_path / "a" / "vectors")
    assert table.vectors.shape[1] == (dimension or 32)
    new, has_text = encode_items(tmp_path / "a", [*catalogue()[5:7], {"item_id": "z"}], device="cpu")
    np.testing.assert_allclose(new[:2], table.vectors[8:10], atol=2e-4)
    np.testing.assert_allclose(new[2], 0, atol=1e-4)
    assert has_text.tolist() == [True, True, False]


def test_pca_keeps_products_and_standardising_gives_unit_variance(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3
    scaled = Reduction.fit("standardise", [rows[:100], rows[100:]]).apply(rows)
    np.testing.assert_allclose(np.diag(np.cov(scaled.T, bias=True)), 1, atol=1e-3)
    pca = Reduction.fit("pca", [rows[:100], rows[100:]], 6).apply(rows)
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(pca @ pca.T, centred @ centred.T, atol=1e-2)
    Reduction("whiten", rows[0], rows[:6], 0.9).save(tmp_path / "r.safetensors")  # of an earlier version
    np.testing.assert_array_equal(Reduction.load(tmp_path / "r.safetensors").apply(rows[:1]).round(4), np.zeros((1, 6)))
    with pytest.raises(InputError, match="at most the model's 6, found 7"):
        Reduction.fit("pca", [rows], 7)


def test_bad_vectors_are_named(tmp_path):
    good = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    ids = [f"x{row}" for row in range(8)]
    check_encoded(good, ids, "test")
    for value, message in ((np.nan, "NaN"), (np.inf, "NaN"), (0.0, "zero")):
        bad = good.copy()
        bad[5] = value
        with pytest.raises(InputError, match=rf"{message}.*x5"):
            check_encoded(bad, ids, "test")
    bad = good.copy()
    bad[2:6] = 1.0
    with pytest.raises(InputError, match=r"same one for 4 items \(x2, x3, x4, x5\)"):
        check_encoded(bad, ids, "test")


def test_item_table_refuses_what_does_not_fit(tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()

    def write(name, ids, vectors):
        table = {"item_id": ids, "vector": vectors_column(np.asarray(vectors)), "has_text": [True] * len(ids)}
        pq.write_table(pa.table(table), folder / name)

    with pytest.raises(InputError, match="run `llmcfsr embed` first"):
        load_item_table(["a"], folder)
    write("part-00000.parquet", ["a", "b"], [[1.0, 2.0], [3.0, 4.0]])
    assert load_item_table(["b", "a"], folder).vectors.tolist() == [[0, 0], [0, 0], [0, 0], [3, 4], [1, 2]]
    with pytest.raises(InputError, match=r"none for 1 \(c\)"):
        load_item_table(["a", "b", "c"], folder)
    write("part-00001.parquet", ["a"], [[1.0, 2.0]])
    with pytest.raises(InputError, match="several for a"):
        load_item_table(["a", "b"], folder)
    write("part-00001.parquet", ["c"], [[1.0, 2.0, 3.0]])
    with pytest.raises(InputError, match="found 2 and 3"):
        load_item_table(["a", "b", "c"], folder)
    write("part-00001.parquet", ["c"], [[1.0, np.nan]])
    with pytest.raises(InputError, match=r"NaN.*c"):
        load_item_table(["a", "b", "c"], folder)
    pq.write_table(pa.table({"item_id": ["a"]}), folder / "part-00001.parquet")
    with pytest.raises(InputError, match="run `llmcfsr embed --force`"):
        load_item_table(["a", "b"], folder)


def test_missing_metadata_is_one_clear_line(config, tmp_path):
    with pytest.raises(InputError, match=r"give data\.items"):
        embed(config, tmp_path / "nothing", tmp_path / "a")
    empty = [{"item_id": name} for name in IDS]
    with pytest.raises(InputError, match="no text at all"):
        embed(config, write_items(tmp_path / "empty", empty), tmp_path / "b")


def test_items_are_found_by_id(items_dir):
    assert [row["item_id"] for row in shards.find_items(items_dir, ["i30", "i2"])] == ["i30", "i2"]
    with pytest.raises(InputError, match="found no nowhere"):
        shards.find_items(items_dir, ["i1", "nowhere"])


def test_models_without_safetensors_are_refused(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights"):
        resolve(str(tmp_path / "m"))
    with pytest.raises(InputError, match="found none"):
        resolve("/no/such/folder")


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "training_args.bin", "vocab.pkl", "vocab.bin", "vocab.pickle", "weights.pt", "optimizer.pth",
     "x.ckpt", "tokenizer.joblib", "x.npy"],
)  # fmt: skip
def test_a_pickle_beside_safetensors_is_refused(name, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(InputError, match=f"{name} is a pickle.*move it away") as raised:
        resolve(str(tmp_path / "m"))
    assert "\n" not in str(raised.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("config.json", {"model_type": "transfo-xl"}),
        ("tokenizer_config.json", {"tokenizer_class": "TransfoXLTokenizer"}),
    ],
)
def test_a_model_whose_vocabulary_is_a_pickle_is_refused(file, setting, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "m")
    path = tmp_path / "m" / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | setting))
    with pytest.raises(InputError, match="keeps its vocabulary in a pickle"):
        resolve(str(tmp_path / "m"))


def test_pickled_weights_in_a_cache_of_the_hub_are_passed_over(tiny_bert, tmp_path, monkeypatch):
    shutil.copytree(tiny_bert, tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"x")
    monkeypatch.setattr(models, "_download", lambda *_: tmp_path / "m")
    assert resolve("some/model").folder == str(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "other.safetensors")  # a name that is not looked for
    with pytest.raises(InputError, match="pickle"):
        resolve("some/model")


def test_a_cut_shard_is_encoded_again(config, items_dir, tmp_path):
    first = embed(config, items_dir, tmp_path / "a")
    path = next((tmp_path / "a" / "encoded").glob("*.parquet"))
    whole = path.read_bytes()
    for cut in (0, 4, len(whole) // 2):
        path.write_bytes(whole[:cut])
        again = embed_table(config, resolve(config.model), items_dir, IDS, tmp_path / "a")
        assert again["items"] == first["items"]
        assert path.read_bytes() == whole


def test_changed_weights_are_refused_for_new_items(config, items_dir, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "m")
    config = config.model_copy(update={"model": str(tmp_path / "m")})
    embed(config, items_dir, tmp_path / "a")
    with open(tmp_path / "m" / "model.safetensors", "r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\x01\x02\x03\x04")
    with pytest.raises(InputError, match="sha256 differs"):
        encode_items(tmp_path / "a", catalogue(1))


def test_fit_rows_bound_keeps_the_mean_close(config, items_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "FIT_ROWS", 20)
    embed(config, items_dir, tmp_path / "a")
    assert load_item_table(IDS, tmp_path / "a" / "vectors").vectors.shape == (43, 32)
