"""`llmcfsr <verb>`: one verb a stage, and what is done with a finished run.

Each verb imports what it needs when it runs (commands.py), so that `--help` is quick and needs nothing.
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

from llmcfsr_merlin import __version__
from llmcfsr_merlin.cli.arguments import separate
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import machine_failure
from llmcfsr_merlin.runtime.layout import STAGES

_STAGE_HELP = {
    "ingest": "raw logs and metadata -> Parquet of interactions and items",
    "prepare": "filters, ids, sequences and splits, by NVTabular",
    "embed": "item attributes -> semantic vectors, by a language model",
    "train": "the model, and the trained baselines of the result table",
    "evaluate": "ranking quality on the test items, overall and on the long tail",
    "export": "a Triton model repository",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 bad input, 2 wrong usage, 3 a bug, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser, of_items = _parser()
    if argv and argv[0] in of_items:
        argv = [argv[0], *separate(of_items[argv[0]], argv[1:])]
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP's threads spin while they wait: where something else needs the core, training was measured 8 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _quiet()
    try:
        from llmcfsr_merlin.cli import commands
        from llmcfsr_merlin.runtime.arrow import check_arrow

        if arguments.command != "doctor":
            check_arrow()
        return getattr(commands, arguments.command)(arguments) or 0
    except BrokenPipeError:  # `llmcfsr ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if arguments.traceback:
            traceback.print_exc()
        line, code = _explained(error, arguments.verb)
        print(line, file=sys.stderr)
        return code


def _explained(error: BaseException, verb: str) -> tuple[str, int]:
    """One line for people, and the exit code."""
    if isinstance(error, InputError | MissingDependency):
        return f"error: {error}", 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped: the same command goes on from the last finished stage or checkpoint", 130
    if (lacking := machine_failure(error)) is not None:
        return f"error: {verb}: {lacking}, then run the same command again", 1
    # A bug, or an environment that no check foresaw.
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--traceback shows where)", 3


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the verbs that take item ids."""
    parser = argparse.ArgumentParser(prog="llmcfsr", description="Long-tail recommendation: raw logs to Triton.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, command: str, text: str, group=verbs) -> argparse.ArgumentParser:
        added = group.add_parser(name, help=text, description=text)
        added.add_argument("--traceback", action="store_true", help="show where an error comes from")
        added.set_defaults(command=command)
        return added

    demo = verb("demo", "demo", "everything on generated data: raw logs to recommendations served by Triton")
    demo.add_argument("--run", type=Path, help="run directory (default runs/demo)")
    demo.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")

    everything = verb("run", "run", "all stages of a recipe")
    everything.set_defaults(stages=STAGES)
    _recipe(everything)
    for stage in STAGES:
        added = verb(stage, "run", _STAGE_HELP[stage])
        added.set_defaults(stages=(stage,))
        _recipe(added)
        if stage == "evaluate":
            added.add_argument("--against", type=Path, metavar="RUN", help="paired tests against another run's model")

    search = verb("search", "search", "choose settings on the validation items, by Optuna")
    _recipe(search)
    search.add_argument("--space", type=Path, help="YAML of lists, e.g. train.negatives: [256, 1024] (default: ours)")
    search.add_argument("--trials", type=int, default=12, help="settings to train (default 12)")

    config = verb("config", "config", "show the settings of a recipe, defaults filled in, and explain them")
    config.add_argument("recipe", nargs="?", help="a recipe's name or a YAML file (default: the defaults alone)")
    _overrides(config)
    config.add_argument("--explain", action="store_true", help="what each setting means, as a comment above it")
    config.add_argument("--schema", action="store_true", help="a JSON schema of recipes, for editors")

    serve = verb("serve", "serve", "serve an exported run by a tritonserver, started again when it fails")
    serve.add_argument("run", type=Path, help="run directory, e.g. runs/demo, or a model repository")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        serve.add_argument(f"--{name}-port", type=int, default=port, help=f"default {port}; 0 takes a free one")
    serve.add_argument("--start-timeout", type=float, default=120, metavar="SECONDS", help="default 120")
    serve.add_argument("--key-file", type=Path, help="where the key to load models is written (default: its folder)")
    serve.add_argument("--log-requests", action="store_true", help="one line a request")

    recommend = verb("recommend", "recommend", "the best items for a history, from a run or from a server")
    recommend.add_argument(
        "items", nargs="*", metavar="ITEM", help="raw item ids, oldest first; a leading dash is no matter"
    )
    recommend.add_argument("--run", type=Path, help="run directory; with --url it only adds titles and users")
    recommend.add_argument("--url", help="server, e.g. grpc://localhost:8001 or http://localhost:8000")
    recommend.add_argument("--user", metavar="ID", help="take the history of this user of --run")
    recommend.add_argument("-k", type=int, default=10, help="how many (default 10)")
    recommend.add_argument("--exclude-seen", action="store_true", help="leave out the items of the history")
    for name, text in (("allow", "only these items"), ("deny", "never these items")):
        recommend.add_argument(
            f"--{name}", action="append", default=[], metavar="ID", help=f"{text}; give it again for another id, or a,b"
        )
    recommend.add_argument("--json", action="store_true", help="one line of JSON instead of a table")

    check = verb("check-served", "check_served", "compare a server with the library on users of the run (release gate)")
    _run(check)
    check.add_argument("--url", required=True)
    check.add_argument("--users", type=int, help="how many, drawn at random (default: all)")
    check.add_argument("-k", type=int, default=10)

    report = verb("report", "report", "one HTML page of a run's results, with figures and examples")
    _run(report)
    report.add_argument("--out", type=Path, help="folder (default RUN/report)")
    report.add_argument("--users", type=int, default=5, help="example users (default 5)")

    items = verb("items", "items", "new items without retraining").add_subparsers(required=True, metavar="ACTION")
    add = verb("add", "add_items", "encode new items and write a model that recommends them", items)
    _run(add)
    add.add_argument("file", type=Path, help="item_id and attributes: JSON lines, CSV or Parquet")
    add.add_argument("--out", type=Path, required=True, help="new run directory: trained model and model repository")

    vectors = verb("vectors", "vectors", "semantic vectors").add_subparsers(required=True, metavar="ACTION")
    judged = verb("report", "vectors_report", "judge the vectors of a run without training a recommender", vectors)
    _run(judged)
    judged.add_argument("--out", type=Path, help="folder (default RUN/vectors-report)")
    judged.add_argument("--tail-below", type=int, default=4, help="train count below which an item is tail (default 4)")

    prompt = verb("prompt", "prompt", "the prompt of items, and two augmented copies")
    _recipe(prompt)
    prompt.add_argument("items", nargs="+", metavar="ITEM", help="raw item ids")

    verb("doctor", "doctor", "what is installed, what does not fit, and the fix")
    return parser, {"recommend": recommend, "prompt": prompt}


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name (demo, yelp, fashion, beauty) or a YAML file")
    parser.add_argument("--run", type=Path, help="run directory (default runs/<recipe>)")
    _overrides(parser)
    parser.add_argument("--force", action="store_true", help="run also what is up to date")


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="apply a model preset, e.g. sasrec, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. train.epochs=3")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")


def _quiet() -> None:
    """Merlin and transformers warn at every import; --traceback is for those who look for causes."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
