"""`llmcfsr update`: a day's log on top of yesterday's run."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.recipe_arguments import add_overrides, config_of
from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="recipe name or YAML file that yesterday's run was made with")
    parser.add_argument("--day", action="append", required=True, metavar="FILE", help="the day's log; may be repeated")
    parser.add_argument("--from", type=Path, required=True, dest="previous", metavar="RUN", help="yesterday's run")
    parser.add_argument("--run", type=Path, required=True, help="new run directory")
    parser.add_argument("--items", type=Path, metavar="FILE", help="new items, recommended before any interaction")
    parser.add_argument("--publish", type=Path, metavar="RUN", help="the run or repository that is served")
    parser.add_argument("--url", help="Triton's HTTP address of its server, which loads the new version")
    parser.add_argument("--key-file", type=Path, help="the file of its line `ready:`")
    add_overrides(parser)


def _run(arguments: Namespace) -> None:
    """Print the stages' durations, yesterday's model on the day, the gate's figures and one line of JSON."""
    from llmcfsr_merlin.cli.results import show_stages
    from llmcfsr_merlin.update import gate
    from llmcfsr_merlin.update.model_stages import ASKED, quality_of_day
    from llmcfsr_merlin.update.update import update

    config = config_of(arguments)
    done = update(
        config, tuple(arguments.day), arguments.previous, arguments.run, items=arguments.items,
        publish=arguments.publish, url=arguments.url, key_file=arguments.key_file,
    )  # fmt: skip
    show_stages(done.manifests)
    day = quality_of_day(config, arguments.run)
    found = done.manifests["gate"].counts["quality"]
    if day is not None:
        asked = done.manifests[ASKED].counts["interactions"]
        print(f"yesterday's model on the day's {asked:,} interactions: NDCG@10 {day:.4f}")
    print(f"held out of the day: {gate.said(found)}")
    if done.version is not None:
        print(f"published: version {done.version} of {arguments.publish}")
    line = {"run": str(arguments.run), "day_ndcg@10": day, "gate": found, "version": done.version}
    print(json.dumps(line | {"seconds": done.seconds}))


VERB = Verb("update", "update a model with a new day's log and publish it if it passes the gate", _arguments, _run)
