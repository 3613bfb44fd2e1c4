"""`llmcfsr check`: what a run of a recipe would do, before it starts."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    from llmcfsr_merlin.cli.recipe_arguments import add_overrides

    parser.add_argument("recipe", help="recipe name (demo, yelp, fashion, beauty) or YAML file")
    parser.add_argument("--run", type=Path, help="run directory (default runs/<recipe>)")
    add_overrides(parser)


def _run(arguments: Namespace) -> int:
    """Print what would go wrong and what the stages would take; 0 if a run can start, else 1."""
    from rich.table import Table

    from llmcfsr_merlin.cli.recipe_arguments import config_of, directory_of
    from llmcfsr_merlin.planning.checks import check_recipe
    from llmcfsr_merlin.runtime.console import show
    from llmcfsr_merlin.runtime.progress import said_seconds

    config = config_of(arguments)
    directory = directory_of(arguments, config)
    found = check_recipe(config, directory)
    table = Table(title=f"check of {config.name}, model {config.model.name}", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in found.checks:
        table.add_row(check.status, check.name, check.found, check.action)
    show(table)
    if found.plan is not None:
        plan = Table(
            title="what a run would do (times within a factor of two to three, on this machine as busy as it is)",
            title_justify="left",
        )
        for column in ("stage", "does", "about", "estimated from"):
            plan.add_column(column, justify="right" if column == "about" else "left", overflow="fold")
        for stage in found.plan.stages:
            about = "?" if stage.seconds is None else said_seconds(stage.seconds)
            plan.add_row(stage.stage, stage.does, about, stage.basis)
        known = [stage.seconds for stage in found.plan.stages if stage.seconds is not None]
        plan.add_section()
        plan.add_row("all", "", said_seconds(sum(known)), "" if len(known) == len(found.plan.stages) else "without ?")
        show(plan)
    errors = sum(check.status == "error" for check in found.checks)
    warnings = sum(check.status == "warn" for check in found.checks)
    if errors:
        print(f"{errors} of these would stop the run: fix them from the top")
        return 1
    print(f"{f'{warnings} warnings; ' if warnings else ''}llmcfsr run {arguments.recipe} can start")
    return 0


VERB = Verb("check", "check a recipe before a run: what it would do, what it needs, likely problems", _arguments, _run)
