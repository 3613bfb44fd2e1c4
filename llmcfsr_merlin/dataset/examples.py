"""Example users of a run: history, held-out item and recommendations by title."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from llmcfsr_merlin.dataset.names import ITEM, ITEMS, SEQUENCES, TITLE, USER, VOCABULARY
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError


def titles(run_dir: str | Path, ids: Sequence[str]) -> dict[str, str]:
    """Raw id -> title of the ids that have one; empty if the run's items have no titles."""
    folder = Path(run_dir) / "ingest" / ITEMS
    if not any(folder.glob("*.parquet")):
        return {}
    items = ds.dataset(folder, format="parquet")
    if TITLE not in items.schema.names:
        return {}
    found = items.to_table(columns=[ITEM, TITLE], filter=ds.field(ITEM).isin(list(ids)))
    pairs = zip(found[ITEM].to_pylist(), found[TITLE].to_pylist())
    return {raw: text for raw, title in pairs if (text := clean(title, 120))}


def sequences(run_dir: str | Path, users: Sequence[str] | None = None) -> dict[str, list[str]]:
    """User -> the full sequence of raw item ids in time order, for the given users or all.

    Raises InputError naming a user that the prepared run does not have.
    """
    prepared = Path(run_dir) / "prepare"
    if not (prepared / SEQUENCES).is_dir():
        raise InputError(f"expected sequences in {prepared / SEQUENCES}, found none: run `llmcfsr prepare` first")
    vocabulary = Vocabulary.load(prepared / VOCABULARY)
    wanted = None if users is None else ds.field(USER).isin(list(users))
    table = ds.dataset(prepared / SEQUENCES, format="parquet").to_table(columns=[USER, ITEM], filter=wanted)
    found = {
        user: vocabulary.decode(np.array(codes)).tolist()
        for user, codes in zip(table[USER].to_pylist(), table[ITEM].to_pylist())
    }
    missing = [user for user in users or () if user not in found]
    if missing:
        raise InputError(f"expected a user of {prepared}, found {missing[0]!r}, who is not in it")
    return found


def pick(run_dir: str | Path, count: int, seed: int = 0) -> dict[str, list[str]]:
    """Sequences of `count` users drawn at random from those with a test item, each up to its last test item."""
    ends: dict[str, int] = {}
    for block in read_histories(Path(run_dir) / "prepare" / SEQUENCES):
        ends |= {str(block.users[user]): target + 1 for user, target in block.cases("test")}
    chosen = np.random.default_rng(seed).choice(sorted(ends), min(count, len(ends)), replace=False).tolist()
    found = sequences(run_dir, chosen)
    return {user: found[user][: ends[user]] for user in chosen}
