"""`llmcfsr config`: show and explain the settings."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.recipe_arguments import add_overrides, config_of
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="recipe name or YAML file (default: the default settings)")
    add_overrides(parser)
    parser.add_argument("--explain", action="store_true", help="print each setting's description as a comment above it")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")


def _run(arguments: Namespace) -> None:
    """All settings as YAML, optionally with descriptions; or the JSON schema of recipes."""
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


VERB = Verb("config", "show a recipe's settings with defaults filled in, and explain them", _arguments, _run)
