"""`llmcfsr config`: the settings, shown and explained."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.recipe_arguments import add_overrides, config_of
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a recipe's name or a YAML file (default: the defaults alone)")
    add_overrides(parser)
    parser.add_argument("--explain", action="store_true", help="what each setting means, as a comment above it")
    parser.add_argument("--schema", action="store_true", help="a JSON schema of recipes, for editors")


def _run(arguments: Namespace) -> None:
    """The whole tree as YAML, bare or explained; or what a recipe may say, as a JSON schema."""
    if arguments.schema:
        from llmcfsr_merlin.config.describe import json_schema
        from llmcfsr_merlin.config.load import Config

        print(json_schema(Config))
        return
    settings = config_of(arguments)
    if arguments.explain:
        from llmcfsr_merlin.config.describe import described

        print(described(settings), end="")
        return
    import yaml

    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), end="")


VERB = Verb("config", "show the settings of a recipe, defaults filled in, and explain them", _arguments, _run)
