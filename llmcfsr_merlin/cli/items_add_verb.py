"""`llmcfsr items add`: add new items without retraining."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.recipe_arguments import add_run
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("file", type=Path, help="new items (item_id and attributes): JSON lines, CSV or Parquet")
    parser.add_argument("--out", type=Path, required=True, help="new run directory for the model and its repository")


def _run(arguments: Namespace) -> None:
    """Write a new run directory: the extended model in train/, its model repository in export/."""
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.dataset.raw.additions import read_items
    from llmcfsr_merlin.runtime.lock import run_lock
    from llmcfsr_merlin.runtime.manifest import Manifest
    from llmcfsr_merlin.serving import export_stage
    from llmcfsr_merlin.serving.new_items import add_items, check_trained_on
    from llmcfsr_merlin.text.item_encoder import encode_items, encode_words

    settings = Config.recorded(arguments.run)
    rows = read_items(arguments.file, settings.data)
    embedded = arguments.run / "embed"
    Manifest.load(embedded).verify(embedded)
    check_trained_on(arguments.run / "train", embedded)
    with run_lock(arguments.out):
        counts = add_items(
            arguments.run, arguments.out / "train", rows, lambda _: encode_items(embedded, rows)[0],
            lambda _: encode_words(embedded, rows), settings.data.null_values,
        )  # fmt: skip
        export_stage.run(settings, arguments.out)
    print(f"{counts['items_added']} items added to {counts['items_before']}: llmcfsr serve {arguments.out}")


VERB = Verb("items add", "encode new items and write a model that can recommend them", _arguments, _run)
