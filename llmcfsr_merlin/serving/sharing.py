"""A run's model as a folder to give away: what `Recommender.load` reads, titles, and the card with its figures."""

import shutil
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.evaluation.figures_of import measured
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.files import CHECKSUMS, remove
from llmcfsr_merlin.runtime.layout import CARD
from llmcfsr_merlin.runtime.manifest import Manifest, seal
from llmcfsr_merlin.serving.bundle import FILES, Bundle
from llmcfsr_merlin.serving.item_table import titles_of, write_titles
from llmcfsr_merlin.training.model_card import write_card


def share(run: str | Path, folder: str | Path) -> list[str]:
    """Write the model of a run into a new folder that can be uploaded as it is; returns the names of its files.

    No interactions, users or paths of this machine are in it. A card that was edited in `run/train` is taken over as it
    is; else it is written with the figures of stage evaluate, if that ranked this model.
    """
    run, folder = Path(run), Path(folder)
    if folder.exists():
        raise InputError(f"expected no folder at {folder}, found one: name a new one")
    config, bundle = Config.recorded(run), Bundle.open(run)
    trained = Manifest.load(bundle.directory)
    partial = folder.with_name(f".{folder.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    for name in FILES["recommend"]:
        shutil.copyfile(bundle.directory / name, partial / name)
    write_titles(partial, titles_of(bundle.directory))
    if trained.fault(bundle.directory, [CARD]) is None or not (bundle.directory / CARD).is_file():
        write_card(partial, config, run, bundle.directory, trained.counts, measured(config, run, trained))
    else:
        shutil.copyfile(bundle.directory / CARD, partial / CARD)
    seal(partial, "train", trained.key, trained.counts)
    (partial / CHECKSUMS).unlink()  # times and inodes of this machine
    partial.rename(folder)
    return sorted(path.name for path in folder.iterdir())
