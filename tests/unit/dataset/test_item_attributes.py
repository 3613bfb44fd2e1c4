"""Attributes of items: which there are, for which items, in any form of the columns."""

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset import prepare_stage
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_attributes import item_attributes
from tests.worlds import write_ingest

SEQUENCES = {f"u{user}": ["a", "b", "c", "d", "e"] for user in range(6)}
ITEMS = {
    "a": {"categories": ["soap", "soap", "hair"], "brand": "soap"},
    "b": {"categories": [], "brand": ""},
    "c": {"categories": None, "brand": "Dune"},
    "d": {"categories": ["hair"], "brand": None},
}


def test_each_value_of_each_column_is_one_attribute(tmp_path):
    write_ingest(tmp_path, SEQUENCES, ITEMS)
    prepare_stage.run(Config.load(None, ["name=x"]), tmp_path)
    dataset = Dataset(tmp_path / "prepare")
    found = item_attributes(dataset, ["categories", "brand", "colour"]).toarray()
    code = {item: int(dataset.vocabulary.encode([item])[0]) for item in "abcde"}
    assert found.shape == (8, 4)
    # hair, soap, then the brands Dune and soap, which is another attribute than the category
    wanted = {"a": [1, 1, 0, 1], "b": [0] * 4, "c": [0, 0, 1, 0], "d": [1, 0, 0, 0], "e": [0] * 4}
    assert {item: found[row].tolist() for item, row in code.items()} == wanted
    assert not found[:3].any()
    assert item_attributes(dataset, ["colour"]) is None
