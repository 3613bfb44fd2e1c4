"""A run for the tests of the page: a prepared world, and a model of random weights in which every part matters."""

from pathlib import Path

from llmcfsr_merlin import Config, Recommender
from llmcfsr_merlin.dataset import prepare_stage
from llmcfsr_merlin.dataset.names import KEPT, MASKED
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.scoring.ranker import Ranker
from tests.models import model_config, random_model
from tests.worlds import attribute_world, write_ingest

HOSTILE_ID = "<img src=x onerror=window.ran=1>"
HOSTILE_TITLES = {  # raw id -> title
    "i0001": "<script>window.ran=1</script>Aurora lipstick",
    "i0002": '"><svg onload=window.ran=1> {{7*7}} Cirrus perfume',
    "i0003": "**Dune** [razor](javascript:window.ran=1) <b>bold</b>",
}


def write_run(run: Path, seed: int = 0, hostile: bool = False) -> Path:
    """run/ingest, prepare and train; hostile: with ids and titles that would run as scripts."""
    sequences, items = attribute_world(users=150, items=80)
    if hostile:
        sequences = {
            user: [HOSTILE_ID if item == "i0000" else item for item in sequence] for user, sequence in sequences.items()
        }
        sequences["<img src=x onerror=window.ran=2>"] = [HOSTILE_ID, "i0001", "i0002", "i0003", HOSTILE_ID]
        for item, title in HOSTILE_TITLES.items():
            items[item]["title"] = title
    write_ingest(run, sequences, items)
    config = Config().with_settings({"name": "world", "prepare.max_length": 12, "prepare.min_item": 1})
    config.record(run)
    prepare_stage.run(config, run)
    write_model(run, run / "train", seed)
    return run


def write_model(run: Path, folder: Path, seed: int) -> Path:
    """A model over the run's items."""
    vocabulary = Vocabulary.load(run / "prepare" / "vocabulary.parquet")
    model = random_model(
        model_config(name=f"model{seed}"), len(vocabulary), 12, counts=vocabulary.train_counts, seed=seed
    )
    weights = model.weights
    model.history_weights = {KEPT: weights, MASKED: weights | {"content": 4.0, "transitions": 1.0}}
    folder.parent.mkdir(exist_ok=True)
    Recommender(Ranker(model), vocabulary).save(folder)
    return folder
