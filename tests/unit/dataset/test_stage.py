"""Stage ingest: skipped where the files are the same, run again where one changed; the synthetic shop."""

import time
from collections import Counter, defaultdict
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import ingest_stage as ingest
from llmcfsr_merlin.dataset.names import INTERACTIONS, ITEM, ITEMS
from llmcfsr_merlin.dataset.raw.synthetic import write_amazon
from llmcfsr_merlin.runtime.stage import sha256_file
from tests.unit.dataset.world import metadata_2018, reviews_2018, write


def configure(folder, *overrides) -> Config:
    return Config.load(None, ["data.format=amazon", f"data.interactions={folder / 'r.json'}", *overrides])


def test_the_key_is_the_content_not_the_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        write(tmp_path / folder / "r.json", reviews_2018())
        write(tmp_path / folder / "m.json", metadata_2018())
    first = ingest.run(configure(tmp_path / "a"), tmp_path / "run")
    assert ingest.run(configure(tmp_path / "b"), tmp_path / "run").key == first.key
    with_items = ingest.run(configure(tmp_path / "b", f"data.items={tmp_path / 'b' / 'm.json'}"), tmp_path / "run")
    write(tmp_path / "a" / "r.json", reviews_2018()[:3])
    changed = ingest.run(configure(tmp_path / "a"), tmp_path / "run")
    assert len({first.key, with_items.key, changed.key}) == 3
    assert changed.counts["interactions"] == 3
    assert pq.read_table(tmp_path / "run" / "ingest" / INTERACTIONS).num_rows == 3


def test_a_failed_run_leaves_the_old_result(tmp_path):
    write(tmp_path / "r.json", reviews_2018())
    before = ingest.run(configure(tmp_path), tmp_path / "run")
    write(tmp_path / "r.json", ["{broken"])
    with pytest.raises(ValueError, match="expected one JSON object per line"):
        ingest.run(configure(tmp_path), tmp_path / "run")
    before.verify(tmp_path / "run" / "ingest")


def test_no_temporary_files_are_left(tmp_path):
    write(tmp_path / "r.json", reviews_2018())
    write(tmp_path / "m.json", metadata_2018())
    files = ingest.run(configure(tmp_path, f"data.items={tmp_path / 'm.json'}"), tmp_path / "run").files
    assert set(files) == {f"{INTERACTIONS}/part-00000.parquet", f"{ITEMS}/part-00000.parquet"}


def test_the_report_is_printed(tmp_path, capsys):
    write(tmp_path / "r.json", reviews_2018())
    ingest.run(configure(tmp_path), tmp_path / "run")
    shown = capsys.readouterr().err
    assert "rows read" in shown and "duplicates kept" in shown and "items without metadata" in shown


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    run = tmp_path_factory.mktemp("shop")
    start = time.process_time()
    manifest = ingest.run(Config.load("demo"), run)
    return run / "ingest", manifest.counts, time.process_time() - start


def test_the_demo_is_quick_and_has_the_size_that_was_asked_for(shop):
    _, counts, seconds = shop
    assert seconds < 10
    assert counts["users"] == 2000 and 800 <= counts["items"] <= 1000
    for name in ("duplicates_kept", "items_without_metadata"):
        assert counts[name] > 0, name


def test_titles_are_for_people(shop):
    titles = pq.read_table(shop[0] / ITEMS)["title"].drop_null().to_pylist()
    assert len(titles) > 800
    assert not any(mark in title for title in titles for mark in ("<", "&amp;"))


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    files = [write_amazon(tmp_path / name, 50, 40, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    one, same, other = ([sha256_file(path) for path in pair] for pair in files)
    assert one == same and one[0] != other[0]


def test_the_shop_has_a_long_tail(shop):
    counts = Counter(pq.read_table(shop[0] / INTERACTIONS)[ITEM].to_pylist())
    assert sum(count < 6 for count in counts.values()) > 0.25 * len(counts)
    top = sum(count for _, count in counts.most_common(len(counts) // 10))
    assert top > 0.3 * sum(counts.values())


def test_attributes_tell_what_comes_next(shop):
    """The last item's kind is the usual successor of the one before far more often than by chance.

    Without this, language-model vectors could not help and the demo would show nothing.
    """
    items = pq.read_table(shop[0] / ITEMS).to_pylist()
    kind = {row[ITEM]: row["categories"][-1] for row in items if row["categories"]}
    histories = defaultdict(list)
    log = pq.read_table(shop[0] / INTERACTIONS).to_pandas().sort_values(["user_id", "timestamp", "row"])
    for user, item in zip(log["user_id"], log["item_id"]):
        histories[user].append(kind.get(item))
    follows: dict[str | None, Counter] = defaultdict(Counter)
    for history in histories.values():
        for one, two in pairwise(history[:-1]):
            follows[one][two] += 1
    cases = [history[-2:] for history in histories.values() if len(history) > 1 and all(history[-2:])]
    hits = sum(follows[before].most_common(1)[0][0] == target for before, target in cases)
    assert hits / len(cases) > 0.5, "by chance 1 in 12"
