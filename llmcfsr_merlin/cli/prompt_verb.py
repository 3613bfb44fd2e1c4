"""`llmcfsr prompt`: the text that the language model reads for an item."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.recipe_arguments import add_recipe, config_of, directory_of
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("items", nargs="+", metavar="ITEM", help="raw item ids")


def _run(arguments: Namespace) -> None:
    from llmcfsr_merlin.dataset.names import ITEMS
    from llmcfsr_merlin.dataset.raw.fields.ids import clean_id
    from llmcfsr_merlin.text.prompts import Prompter, show
    from llmcfsr_merlin.text.shards import find_items

    config = config_of(arguments)
    ids = [clean_id(raw) or raw for raw in arguments.items]
    rows = find_items(directory_of(arguments, config) / "ingest" / ITEMS, ids)
    embed = config.embed
    print(show(rows, Prompter.of(embed.template, embed.instruction, embed.popularity), embed.tune.drop))


VERB = Verb("prompt", "show the prompts of items, each with two augmented copies", _arguments, _run, item_ids=True)
