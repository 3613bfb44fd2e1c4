"""The items' texts in the order of their encoded ids, from the items that stage ingest wrote."""

from pathlib import Path

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, ITEMS
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.prompts import Prompter
from llmcfsr_merlin.text.shards import plan_shards, read_rows


def item_texts(dataset: Dataset) -> list[str]:
    """The prompt of each item, V of them, by the template `generic`; "" for reserved ids and items without attributes.

    InputError if no item has any.
    """
    ids = dataset.vocabulary.ids.tolist()
    place = {raw: FIRST_ITEM + number for number, raw in enumerate(ids)}
    texts, prompter = [""] * (FIRST_ITEM + len(ids)), Prompter.of("generic")
    shards, _, _ = plan_shards(Path(dataset.prepared).parent / "ingest" / ITEMS, ids)
    for shard in shards:
        for row in read_rows(shard).to_pylist():
            texts[place[str(row[ITEM])]] = prompter(row)
    if not any(texts):
        raise InputError("expected items with attributes that a language model can read, found none: see data.items")
    return texts
