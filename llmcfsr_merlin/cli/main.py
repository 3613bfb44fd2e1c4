"""`llmcfsr <verb>`: one verb per stage, and verbs for finished runs; each lives in a `*_verb.py`."""

import argparse
import logging
import os
import sys
import traceback

from llmcfsr_merlin import __version__
from llmcfsr_merlin.cli import (
    check_served_verb,
    check_verb,
    config_verb,
    demo_verb,
    doctor_verb,
    encoders_verb,
    explore_verb,
    gateway_verb,
    init_verb,
    items_add_verb,
    prompt_verb,
    recommend_verb,
    report_verb,
    search_verb,
    serve_verb,
    share_verb,
    stage_verbs,
    update_verb,
    vectors_report_verb,
)
from llmcfsr_merlin.cli.item_ids import separate
from llmcfsr_merlin.cli.log import shown
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import machine_failure

VERBS = (
    demo_verb.VERB,
    init_verb.VERB,
    check_verb.VERB,
    *stage_verbs.VERBS,
    update_verb.VERB,
    search_verb.VERB,
    config_verb.VERB,
    serve_verb.VERB,
    gateway_verb.VERB,
    recommend_verb.VERB,
    check_served_verb.VERB,
    report_verb.VERB,
    explore_verb.VERB,
    items_add_verb.VERB,
    share_verb.VERB,
    vectors_report_verb.VERB,
    prompt_verb.VERB,
    encoders_verb.VERB,
    doctor_verb.VERB,
)
_GROUPS = {"items": "new items without retraining", "vectors": "semantic vectors"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 bad input, 2 wrong usage, 3 a bug, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser, of_items = _parser()
    if argv and argv[0] in of_items:
        argv = [argv[0], *separate(of_items[argv[0]], argv[1:])]
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP threads spin while they wait: with other load on the cores, training was measured 8 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not arguments.verbose:
        _quiet()
    level = logging.DEBUG if arguments.verbose else logging.WARNING if arguments.quiet else logging.INFO
    try:
        from llmcfsr_merlin.runtime.arrow import check_arrow

        if arguments.verb != "doctor":
            check_arrow()
        with shown(level, origin=arguments.verbose):
            return arguments.run_verb(arguments) or 0
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
    """An error as one readable line, and the exit code."""
    if isinstance(error, InputError | MissingDependency):
        return f"error: {error}", 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped: run the same command to continue from the last finished stage or checkpoint", 130
    if (lacking := machine_failure(error)) is not None:
        return f"error: {verb}: {lacking}, then run the same command again", 1
    # A bug, or an environment problem that no check covers.
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--traceback shows where)", 3


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the verbs that take item ids."""
    parser = argparse.ArgumentParser(
        prog="llmcfsr", description="Long-tail sequential recommendation, from raw logs to Triton."
    )
    parser.add_argument("--version", action="version", version=__version__)
    top = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    of_items, groups = {}, {}
    for verb in VERBS:
        group, _, action = verb.name.rpartition(" ")
        if group and group not in groups:
            added = top.add_parser(group, help=_GROUPS[group], description=_GROUPS[group])
            groups[group] = added.add_subparsers(required=True, metavar="ACTION")
        added = (groups[group] if group else top).add_parser(action, help=verb.help, description=verb.help)
        added.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
        said = added.add_mutually_exclusive_group()
        said.add_argument("-q", "--quiet", action="store_true", help="print only warnings, errors and the result")
        said.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="add times and modules to log lines, and show libraries' warnings",
        )
        added.set_defaults(run_verb=verb.run)
        verb.arguments(added)
        if verb.item_ids:
            of_items[verb.name] = added
    return parser, of_items


def _quiet() -> None:
    """Merlin and transformers warn at every import; --verbose shows those warnings."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
