"""`llmcfsr report`: a run's results as one HTML page."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from llmcfsr_merlin.cli.recipe_arguments import add_run, held
from llmcfsr_merlin.cli.verb import Verb
from llmcfsr_merlin.runtime.layout import BASELINES


def _arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=Path, help="folder (default RUN/report)")
    parser.add_argument("--users", type=int, default=5, help="number of example users (default 5)")


def _run(arguments: Namespace) -> None:
    """Write RUN/report/report.html: metrics, training curves, paired tests and example users."""
    from llmcfsr_merlin.cli.results import paired, read_metrics, said_returns, said_ties
    from llmcfsr_merlin.config.load import Config
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.dataset.names import CASES, RANKS
    from llmcfsr_merlin.evaluation.cases import said_negatives
    from llmcfsr_merlin.evaluation.report.page import PAGE, write_report
    from llmcfsr_merlin.recommender import Recommender
    from llmcfsr_merlin.runtime.manifest import Manifest
    from llmcfsr_merlin.runtime.ownership import claim_results

    directory = arguments.run
    Manifest.load(directory / "evaluate").verify(directory / "evaluate")
    settings = Config.recorded(directory)
    metrics, served = read_metrics(settings, directory)
    names = list(dict.fromkeys(row["recipe"] for row in metrics))
    chosen = examples.pick(directory, arguments.users)
    recommender = Recommender.load(directory)
    answers = recommender.answer([s[:-1] for s in chosen.values()], 10, exclude_seen=settings.evaluate.exclude_history)
    known = examples.titles(directory, [*(i for s in chosen.values() for i in s), *answers.items.ravel().tolist()])
    shown = [
        {
            "user": user,
            "history": [known.get(item, item) for item in sequence[:-1]],
            "target": known.get(sequence[-1], sequence[-1]),
            "recommended": [known.get(item, item) for item in row if item is not None],
        }
        for (user, sequence), row in zip(chosen.items(), answers.items)
    ]
    curves = {settings.model.name: directory / "train"}
    curves |= {path.name: path for path in sorted((directory / BASELINES).glob("[!.]*")) if path.name in names}
    ranks = directory / "evaluate" / RANKS
    out = arguments.out or directory / "report"
    with held(directory, out):
        claim_results(out, (PAGE, "training.png", "deciles-*.png", "groups-*.png"))
        page = write_report(
            out,
            metrics,
            title=f"{settings.name}: {settings.model.name}",
            focus=settings.model.name,
            base="sasrec" if "sasrec" in names else names[-1],
            negatives=said_negatives(directory / "evaluate" / CASES),
            served=served,
            tied=said_ties(directory),
            returning=said_returns(directory),
            histories={name: epochs for name, path in curves.items() if (epochs := _epochs(path))},
            comparisons={
                base: paired(ranks, settings.model.name, ranks, base, directory, settings)
                for base in names
                if base != settings.model.name
            },
            examples=shown,
        )
    print(page)


def _epochs(trained: Path) -> list[dict]:
    """The training history; empty for a model fitted in closed form."""
    from llmcfsr_merlin.dataset.names import TRAIN_HISTORY

    return json.loads((trained / TRAIN_HISTORY).read_text())


VERB = Verb("report", "write a run's results as one HTML page with figures and examples", _arguments, _run)
