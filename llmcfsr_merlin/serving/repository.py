"""Export: writes a Triton model repository from a trained run and triton_repo/'s templates, and new versions of it."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.dataset.names import MODEL_REPOSITORY
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import resource
from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.scoring.search.bound_tables import write_tables
from llmcfsr_merlin.serving.bundle import FOLDER, GRAPHS, Bundle
from llmcfsr_merlin.serving.item_table import write_items

CONFIG = "config.pbtxt"
FRONT = "recommend"  # the model that clients call, in every layout
EXPLAIN = "explain"  # the same with reasons: layout ensemble, format python; merged has an input EXPLAIN instead


def export(trained: str | Path, repository: str | Path, serve: ServeConfig) -> dict:
    """Write a new repository; returns counts for the manifest.

    trained: a run directory or a folder with a sealed model. The repository holds all data that it needs inside its
    model folders and no absolute paths: it can be moved, renamed and mounted read-only.
    """
    bundle, repository = Bundle.open(trained), Path(repository)
    if repository.exists():
        raise InputError(f"expected no folder at {repository}, found one: use publish() to add a version")
    repository.mkdir(parents=True)
    _write(bundle, repository, serve, version=1)
    return {"layout": serve.layout, "bundle": bundle.hash, "version": 1}


def publish(trained: str | Path, repository: str | Path, serve: ServeConfig) -> int:
    """Add a model as the next version of an existing repository and return its number.

    Folders appear by rename, and the ensemble is pointed at the new version last: a server that polls or reloads at any
    moment sees either the old or the new version complete. The version before stays for requests in flight.
    """
    bundle, repository = Bundle.open(trained), Path(repository)
    found = versions(repository)
    if layout(repository) != serve.layout:
        raise InputError(
            f"{repository} has layout {layout(repository)}, found serve.layout={serve.layout}: export anew"
        )
    if format_of(repository) != serve.format:
        raise InputError(
            f"{repository} has format {format_of(repository)}, found serve.format={serve.format}: export anew"
        )
    _write(bundle, repository, serve, version=found[-1] + 1)
    for model in _models(repository):
        if model in (FRONT, EXPLAIN) and serve.layout == "ensemble":
            continue  # their one empty version stands for every version of the steps
        for old in found[:-1]:
            shutil.rmtree(repository / model / str(old), ignore_errors=True)
    return found[-1] + 1


def repository_of(path: str | Path) -> Path:
    """The repository of a run directory, or `path` itself if it is one."""
    path = Path(path)
    return path if (path / FRONT / CONFIG).is_file() else path / "export" / MODEL_REPOSITORY


def layout(repository: Path) -> str:
    """`ensemble` or `merged`; InputError if the folder is not an exported repository."""
    if not (Path(repository) / FRONT / CONFIG).is_file():
        raise InputError(
            f"expected a model repository in {repository}, found no {FRONT}/{CONFIG}: run `llmcfsr export`"
        )
    return "ensemble" if (Path(repository) / "rank").is_dir() else "merged"


def format_of(repository: Path) -> str:
    """`python`, `torchscript` or `onnx`: the format of the newest version."""
    if layout(repository) == "merged":
        return "python"
    newest = Path(repository) / "rank" / str(versions(repository)[-1])
    return next((form for form, file in GRAPHS.items() if (newest / file).is_file()), "python")


def needs_gpu(repository: Path) -> bool:
    """Whether a model of the repository runs only on GPUs."""
    return any("KIND_GPU" in (Path(repository) / model / CONFIG).read_text() for model in _models(repository))


def load_order(repository: Path) -> list[str]:
    """The models in the order in which a server loads a new version: steps before what is made of them."""
    # Asked for the ensemble alone, Triton was seen to refuse it while its steps changed version.
    found = _models(repository)
    return [name for name in ("encode", "rank", "decode", FRONT, EXPLAIN) if name in found]


@dataclass(frozen=True)
class Served:
    """What a repository's servers take and give. shortlist: as in Ranker. explains: the model that gives reasons,
    EXPLAIN or FRONT (if its input EXPLAIN asks for them), or None."""

    max_rows: int
    max_top_k: int
    shortlist: int
    explains: str | None


def served(repository: Path) -> Served:
    """Read it from the models' configuration."""
    models = ("encode", "rank") if layout(repository) == "ensemble" else (FRONT,)
    text = "\n".join((Path(repository) / model / CONFIG).read_text() for model in models)

    def number(pattern: str, default: int) -> int:
        found = re.search(pattern, text)
        return int(found[1]) if found else default

    explains = EXPLAIN if (Path(repository) / EXPLAIN / CONFIG).is_file() else FRONT if _ASKED in text else None
    told = r'key: "{}" value: {{ string_value: "(\d+)" }}'
    return Served(
        number(r"max_batch_size: (\d+)", 1), number(told.format("max_top_k"), 100), number(told.format("shortlist"), 0),
        explains,
    )  # fmt: skip


_ASKED = 'name: "EXPLAIN"'


def newest_items(repository: Path) -> Path:
    """The folder of the newest version whose item table tells titles and counts."""
    model = "decode" if layout(repository) == "ensemble" else FRONT
    return Path(repository) / model / str(versions(repository)[-1])


def versions(repository: Path) -> list[int]:
    """Numbers of the complete versions, ascending."""
    holder = Path(repository) / ("rank" if layout(repository) == "ensemble" else FRONT)
    return sorted(int(path.name) for path in holder.iterdir() if path.name.isdecimal())


def _models(repository: Path) -> list[str]:
    return sorted(path.name for path in Path(repository).iterdir() if (path / CONFIG).is_file())


def _write(bundle: Bundle, repository: Path, serve: ServeConfig, version: int) -> None:
    templates = resource("triton_repo") / serve.layout
    settings = {
        "max_batch_size": serve.max_batch_size,
        "queue_delay": serve.max_queue_delay_us,
        "max_top_k": serve.max_top_k,
        "shortlist": serve.shortlist,
        "engine": serve.engine,
        "on_uncertain": serve.on_uncertain,
        "max_length": bundle.max_length,
        "instances": serve.instances,
        "device": serve.device,
        "kind": f"KIND_{serve.device.upper()}",
        "version": version,
        **_graph_settings(serve),
    }
    names = sorted(path.name for path in templates.iterdir() if (path / CONFIG).is_file())
    for name in sorted(names, key=lambda name: name == FRONT):  # the ensemble last: it names the version of its steps
        model = repository / name
        model.mkdir(exist_ok=True)
        code = templates / name / "1" / "model.py"
        graph = name == "rank" and serve.format != "python"
        if code.is_file():
            partial = model / f".{version}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            bundle.copy(partial / FOLDER, name)
            if serve.shortlist and name in ("rank", FRONT):
                write_tables(load_model(bundle.directory), partial / FOLDER)
            if name == ("decode" if serve.layout == "ensemble" else FRONT):
                write_items(partial, bundle)
            if graph:
                from llmcfsr_merlin.serving.graph import write_graph

                write_graph(bundle, partial, serve.format, serve.max_top_k, serve.max_batch_size)
            else:
                shutil.copyfile(code, partial / "model.py")
            partial.rename(model / str(version))
        template = (templates / name / (f"config.{serve.format}.pbtxt" if graph else CONFIG)).read_text()
        if name == FRONT and serve.layout == "ensemble":
            if serve.format == "python":  # a graph gives no reasons
                _write_config(repository / EXPLAIN, template, settings | _EXPLAINED)
            settings |= {"name": FRONT, "reasons": "", "rank_reasons": ""}
        _write_config(model, template, settings)


_EXPLAINED = {
    "name": EXPLAIN,
    "reasons": ',\n  { name: "REASONS" data_type: TYPE_STRING dims: [ -1 ] }',
    "rank_reasons": '      output_map { key: "REASONS" value: "REASONS" }\n',
}


def _write_config(model: Path, template: str, settings: dict) -> None:
    if "ensemble_scheduling" in template:
        (model / "1").mkdir(parents=True, exist_ok=True)  # an ensemble has one version, with nothing in it
    temporary = model / f".{CONFIG}.{os.getpid()}"
    temporary.write_text(Template(template).substitute(settings))
    temporary.replace(model / CONFIG)


def _graph_settings(serve: ServeConfig) -> dict[str, str]:
    """Output names of `rank` in the ensemble, and onnxruntime's options."""
    outputs: tuple[str, ...] = ("ITEM_CODES", "SCORES", "RANKED")
    if serve.format == "torchscript":  # the pytorch backend identifies outputs only by position
        outputs = tuple(f"{name}__{place}" for place, name in enumerate(outputs))
    tensorrt = 'optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt" } ] } }'
    return {
        **dict(zip(("item_codes", "scores", "ranked"), outputs)),
        "rank_proven": '      output_map { key: "PROVEN" value: "PROVEN" }\n' if serve.format == "python" else "",
        "decode_proven": '      input_map { key: "PROVEN" value: "PROVEN" }\n' if serve.format == "python" else "",
        "rank_k": '      input_map { key: "K" value: "K" }\n' if serve.format == "python" else "",
        "optimization": tensorrt if serve.tensorrt else "",
    }
