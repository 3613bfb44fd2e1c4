"""What the verbs of the command line do; each takes the parsed arguments and returns an exit code or None."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import CASES, ITEM, ITEMS, METRICS, MODEL_REPOSITORY, RANKS, TRAIN_HISTORY
from llmcfsr_merlin.dataset.raw.ids import clean_id
from llmcfsr_merlin.runtime.console import show
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import BASELINES, STAGES
from llmcfsr_merlin.runtime.stage import Manifest


def run(arguments) -> None:
    """Stages of a recipe, then a table of what they took, the results and one line of JSON."""
    config = _config(arguments)
    directory = _directory(arguments, config)
    from llmcfsr_merlin.pipeline import run_stages

    manifests = run_stages(config, directory, arguments.stages, force=arguments.force)
    _show_stages(manifests)
    line = {"run": str(directory), "stages": {name: _summary(manifest) for name, manifest in manifests.items()}}
    if "evaluate" in manifests:
        line |= json.loads(_show_results(config, directory))
        if getattr(arguments, "against", None):
            _compare(config, directory, arguments.against)
    print(json.dumps(line))


def demo(arguments) -> int:
    """The demo recipe, a server, three users asked, every user checked against the library."""
    config = Config.load("demo", arguments.set)
    directory = arguments.run or Path("runs") / config.name
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.pipeline import run_stages
    from llmcfsr_merlin.serving import Client, Server
    from llmcfsr_merlin.serving.parity import check_served as compare

    manifests = run_stages(config, directory)
    _show_stages(manifests)
    _show_results(config, directory)
    print("starting tritonserver ...", flush=True)
    with Server(directory / "export" / MODEL_REPOSITORY) as server, Client(server.grpc_url) as client:
        for user, sequence in examples.pick(directory, 3).items():
            answer = client.recommend([sequence[:-1]], k=5, exclude_seen=True)
            _show_user(directory, user, sequence[:-1], answer)
        histories = [sequence[:-1] for sequence in examples.sequences(directory).values()]
        parity = compare(directory, server.grpc_url, histories, shortlist=config.serve.shortlist)
    print(f"served = offline on {parity.equal + parity.ties} of {parity.histories} users")
    print(f"serve it yourself: llmcfsr serve {directory}")
    print("and ask it:        llmcfsr recommend --url grpc://localhost:8001 ITEM ...")
    return 0 if parity.passed else 1


def search(arguments) -> None:
    """The stages before training, then trials; a table of them, best first, and a file for --model."""
    from rich.table import Table

    from llmcfsr_merlin.config.layers import read_yaml
    from llmcfsr_merlin.pipeline import run_stages
    from llmcfsr_merlin.runtime.layout import resource
    from llmcfsr_merlin.runtime.lock import run_lock
    from llmcfsr_merlin.training.search import BEST
    from llmcfsr_merlin.training.search import search as find

    config = _config(arguments)
    directory = _directory(arguments, config)
    path = arguments.space or resource("pipelines") / "search" / "space.yaml"
    if not path.is_file() or not isinstance(space := read_yaml(path), dict):
        raise InputError(f"--space: expected a YAML file of settings and lists of values, found {path}")
    if arguments.trials < 1:
        raise InputError(f"--trials: expected at least 1, found {arguments.trials}")
    with run_lock(directory):
        run_stages(config, directory, STAGES[: 3 if config.model.reads else 2])
        found = find(config, directory, space, arguments.trials)
    table = Table(title="settings by validation NDCG@10 (full ranking)", title_justify="left")
    numbers = [key for key in found[0] if key not in ("trial", "settings")]
    settings = list(found[0]["settings"])
    for key in (*settings, *numbers):
        table.add_column(key, justify="right")
    for row in found:
        table.add_row(*(str(row["settings"][key]) for key in settings), *(str(row[key]) for key in numbers))
    show(table)
    print(f"use the best: llmcfsr run {arguments.recipe} --model {directory / 'search' / BEST}")
    print(json.dumps({"run": str(directory), "trials": len(found), "best": found[0]}))


def config(arguments) -> None:
    """The whole tree as YAML, bare or explained; or what a recipe may say, as a JSON schema."""
    if arguments.schema:
        from llmcfsr_merlin.config.describe import json_schema

        print(json_schema(Config))
        return
    settings = _config(arguments)
    if arguments.explain:
        from llmcfsr_merlin.config.describe import described

        print(described(settings), end="")
        return
    import yaml

    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), end="")


def serve(arguments) -> int:
    from llmcfsr_merlin.serving.repository import repository_of
    from llmcfsr_merlin.serving.supervise import serve as serve_repository

    return serve_repository(
        repository_of(arguments.run),
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        timeout=arguments.start_timeout,
        key_file=arguments.key_file,
        log_requests=arguments.log_requests,
    )


def recommend(arguments) -> None:
    """From a server where --url is given, else from the run."""
    from llmcfsr_merlin.dataset import examples

    if arguments.user is not None and not arguments.run:
        raise InputError("--user needs --run, the run directory that knows the user")
    if (arguments.user is None) == (not arguments.items):
        raise InputError("expected either item ids or --user, found " + ("both" if arguments.items else "neither"))
    history = [clean_id(raw) or raw for raw in arguments.items]
    if arguments.user is not None:
        user = clean_id(arguments.user) or ""
        history = examples.sequences(arguments.run, [user])[user]
    options = {"exclude_seen": arguments.exclude_seen}
    if arguments.url:
        from llmcfsr_merlin.serving import Client

        with Client(arguments.url) as client:
            filters = _filters(arguments, lambda ids: client.answer([[raw] for raw in ids], 1).unknown == 0)
            answers = client.answer([history], arguments.k, **options, **filters)
    elif arguments.run:
        from llmcfsr_merlin.recommender import Recommender

        recommender = Recommender.load(arguments.run)
        filters = _filters(arguments, lambda ids: recommender.encode([[raw] for raw in ids]).unknown == 0)
        answers = recommender.answer([history], arguments.k, **options, **filters)
    else:
        raise InputError("expected --run DIRECTORY or --url SERVER, found neither")
    if answers.unknown[0] and (dashed := [raw for raw in arguments.items if raw.startswith("-")]):
        print(f"taken as item ids, not as options: {' '.join(dashed)}", file=sys.stderr)
    from llmcfsr_merlin.recommender import table

    found = table(answers)
    if arguments.json:
        answer = found[[ITEM, "score"]].to_dict("records")
        print(json.dumps({"items": answer, "unknown": int(answers.unknown[0]), "fallback": bool(answers.fallback[0])}))
        return
    _show_user(arguments.run, arguments.user, history, found)
    if answers.fallback[0]:
        print("nothing of the history is known: these are the most popular items")
    elif answers.unknown[0]:
        print(f"{answers.unknown[0]} id(s) of the history are unknown and were left out")


def _filters(arguments, known: Callable[[list[str]], Sequence[bool]]) -> dict[str, list[str]]:
    """--allow and --deny as lists. `a,b` is one id where the model has it, else two. known: of ids, which it has."""
    filters = {}
    for name in ("allow", "deny"):
        if not (given := getattr(arguments, name)):
            continue
        ids = []
        for text, whole in zip(given, known(given)):
            ids += [text] if whole else text.split(",")
        unknown = [raw for raw, there in zip(ids, known(ids)) if not there]
        if name == "allow" and len(unknown) == len(ids):
            raise InputError(f"--allow: expected items of the model, found none that it knows, first {unknown[0]!r}")
        if unknown:
            print(f"--{name}: {len(unknown)} id(s) are unknown, first {unknown[0]!r}", file=sys.stderr)
        filters[name] = ids
    return filters


def check_served(arguments) -> int:
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.serving.parity import check_served as compare

    chosen = examples.pick(arguments.run, arguments.users) if arguments.users else examples.sequences(arguments.run)
    histories = [sequence[:-1] for sequence in chosen.values()]
    shortlist = Config.recorded(arguments.run).serve.shortlist
    parity = compare(arguments.run, arguments.url, histories, arguments.k, shortlist=shortlist)
    if not parity.passed:
        print(parity.first_difference, file=sys.stderr)
    print(json.dumps(parity.as_dict()))
    return 0 if parity.passed else 1


def report(arguments) -> None:
    """RUN/report/report.html from the run's metrics, training curves, paired tests and a few users."""
    from llmcfsr_merlin.dataset import examples
    from llmcfsr_merlin.evaluation.cases import said_negatives
    from llmcfsr_merlin.evaluation.report.page import PAGE, write_report
    from llmcfsr_merlin.recommender import Recommender
    from llmcfsr_merlin.runtime.ownership import claim_results

    directory = arguments.run
    Manifest.load(directory / "evaluate").verify(directory / "evaluate")
    metrics = json.loads((directory / "evaluate" / METRICS).read_text())
    names = list(dict.fromkeys(row["recipe"] for row in metrics))
    settings = Config.recorded(directory)
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
    with _held(directory, out):
        claim_results(out, (PAGE, "training.png", "deciles-*.png"))
        page = write_report(
            out,
            metrics,
            title=f"{settings.name}: {settings.model.name}",
            focus=settings.model.name,
            base="sasrec" if "sasrec" in names else names[-1],
            negatives=said_negatives(directory / "evaluate" / CASES),
            exclude_history=settings.evaluate.exclude_history,
            histories={name: epochs for name, path in curves.items() if (epochs := _history(path))},
            comparisons={
                base: _paired(ranks, settings.model.name, ranks, base, directory, settings)
                for base in names
                if base != settings.model.name
            },
            examples=shown,
        )
    print(page)


def add_items(arguments) -> None:
    """A new run directory with the grown model in train/ and its model repository in export/."""
    from llmcfsr_merlin.dataset.raw.additions import read_items
    from llmcfsr_merlin.serving.new_items import add_items as grow
    from llmcfsr_merlin.text.item_encoder import encode_items, encode_words

    settings = Config.recorded(arguments.run)
    rows = read_items(arguments.file, settings.data)
    embedded = arguments.run / "embed"
    Manifest.load(embedded).verify(embedded)
    _check_trained_on(arguments.run / "train", embedded)
    from llmcfsr_merlin.runtime.lock import run_lock
    from llmcfsr_merlin.serving import export_stage as export

    with run_lock(arguments.out):
        counts = grow(
            arguments.run, arguments.out / "train", rows, lambda _: encode_items(embedded, rows)[0],
            lambda _: encode_words(embedded, rows), settings.data.null_values,
        )  # fmt: skip
        export.run(settings, arguments.out)
    print(f"{counts['items_added']} items added to {counts['items_before']}: llmcfsr serve {arguments.out}")


def _check_trained_on(trained: Path, embedded: Path) -> None:
    """Word vectors fitted again have other axes: new items would be compared with old ones by meaningless numbers."""
    inputs = Manifest.load(trained).inputs
    if inputs.get("embed") == Manifest.load(embedded).identity:
        return
    # Of an earlier version, or embedded again with the same result: compared by value.
    import numpy as np

    from llmcfsr_merlin.dataset.dataset import Dataset
    from llmcfsr_merlin.runtime.manifest import remake
    from llmcfsr_merlin.scoring.checkpoint import load_model

    dataset = Dataset(trained, embedded)
    model = load_model(trained, dataset.vocabulary.hash)
    for name, kept in model.vectors.named_buffers():
        if getattr(dataset.shape, name) != kept.shape[1] or not np.array_equal(dataset.vectors(name), kept.numpy()):
            raise InputError(
                f"expected in {embedded} the vectors that the model was trained on, found others: "
                f"{remake(trained, 'train')}"
            )


def vectors_report(arguments) -> None:
    from llmcfsr_merlin.runtime.ownership import claim_results
    from llmcfsr_merlin.text.diagnostics.vector_report import summary
    from llmcfsr_merlin.text.diagnostics.vector_report import vectors_report as judge

    out = arguments.out or arguments.run / "vectors-report"
    for stage in ("ingest", "prepare", "embed"):
        Manifest.load(arguments.run / stage).verify(arguments.run / stage)
    with _held(arguments.run, out):
        claim_results(out, ("report.json", "neighbours.txt", "map.png"))
        print(summary(judge(arguments.run, out, arguments.tail_below)))
    print(f"figures, neighbours by title and a map: {out}")


def prompt(arguments) -> None:
    from llmcfsr_merlin.text.prompts import Prompter
    from llmcfsr_merlin.text.prompts import show as show_prompts
    from llmcfsr_merlin.text.shards import find_items

    config = _config(arguments)
    ids = [clean_id(raw) or raw for raw in arguments.items]
    rows = find_items(_directory(arguments, config) / "ingest" / ITEMS, ids)
    embed = config.embed
    print(show_prompts(rows, Prompter.of(embed.template, embed.instruction, embed.popularity), embed.tune.drop))


def doctor(_) -> int:
    from llmcfsr_merlin.runtime.doctor import main

    return main()


def _history(trained: Path) -> list[dict]:
    """The epochs of a training; none of a model that is fitted in closed form."""
    return json.loads((trained / TRAIN_HISTORY).read_text())


def _held(run: Path, out: Path):
    """The run's lock where `out` is inside the run; a run that is only read may be read-only, or be written."""
    from llmcfsr_merlin.runtime.lock import run_lock

    return run_lock(run) if out.resolve().is_relative_to(run.resolve()) else nullcontext()


def _config(arguments) -> Config:
    return Config.load(arguments.recipe, arguments.set, arguments.model)


def _directory(arguments, config: Config) -> Path:
    return arguments.run or Path("runs") / config.name


def _summary(manifest: Manifest) -> dict:
    return {"seconds": manifest.seconds, "peak_memory_mb": manifest.peak_memory_mb}


def _show_stages(manifests: dict[str, Manifest]) -> None:
    from rich.table import Table

    table = Table(title="stages", title_justify="left")
    for column in ("stage", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, manifest in manifests.items():
        table.add_row(name, f"{manifest.seconds:,.1f}", f"{manifest.peak_memory_mb:,}")
    show(table)


def _show_results(config: Config, directory: Path) -> str:
    """Print the result tables; returns the JSON line."""
    from llmcfsr_merlin.evaluation.cases import said_negatives
    from llmcfsr_merlin.evaluation.report.tables import json_line, result_tables

    metrics = json.loads((directory / "evaluate" / METRICS).read_text())
    settings = config.evaluate
    negatives = said_negatives(directory / "evaluate" / CASES)
    for table in result_tables(metrics, negatives=negatives, exclude_history=settings.exclude_history):
        show(table)
    return json_line(metrics)


def _show_user(run_dir: Path | None, user: str | None, history: Sequence[str], found) -> None:
    """A history and its recommendations, by title where the run knows titles."""
    from rich.table import Table

    from llmcfsr_merlin.dataset import examples

    items = found[ITEM].tolist()
    known = examples.titles(run_dir, [*history, *items]) if run_dir else {}
    past = "; ".join(known.get(item, item) for item in history[-5:])
    name = "history" if user is None else f"user {user}"
    table = Table(title=f"{name}: {'... ' if len(history) > 5 else ''}{past}", title_justify="left")
    for column in ("", "item", *(["title"] if known else []), "score"):
        table.add_column(column, justify="right" if column in ("", "score") else "left")
    for rank, (item, score) in enumerate(zip(items, found["score"]), 1):
        title = [known.get(item, "")] if known else []
        table.add_row(str(rank), item, *title, f"{score:.3f}")
    show(table)


def _compare(config: Config, directory: Path, other: Path) -> None:
    from llmcfsr_merlin.evaluation.report.tables import comparison_table

    against = Config.recorded(other)
    Manifest.load(other / "evaluate").verify(other / "evaluate")
    rows = _paired(
        directory / "evaluate" / RANKS,
        config.model.name,
        other / "evaluate" / RANKS,
        against.model.name,
        directory,
        config,
    )
    show(comparison_table(rows, config.model.name, against.model.name))


def _paired(ranks: Path, name: str, base_ranks: Path, base: str, directory: Path, config: Config) -> list[dict]:
    from llmcfsr_merlin.evaluation.measure import compare_runs

    return compare_runs(ranks, name, base_ranks, base, directory / "prepare", config.evaluate)
