"""Stage evaluate: the model and its baselines, ranked on the same stored cases."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import ITEMS, LEXICAL, SEQUENCES, VECTORS, VOCABULARY
from llmcfsr_merlin.evaluation.measure import measure
from llmcfsr_merlin.evaluation.ranks import ScoreFunction
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.layout import BASELINES
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.runtime.manifest import MANIFEST
from llmcfsr_merlin.runtime.stage import Manifest, run_stage
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.training.fit import fit_model


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/evaluate (metrics, ranks per user, stored candidates) from run_dir/prepare, train and baselines."""
    run_dir = Path(run_dir)
    others = {name: config.with_model(name) for name in config.baselines}
    folders = {config.model.name: "train"}
    folders |= {name: f"{BASELINES}/{name}" for name, other in others.items() if other.model.network}

    def work(out: Path) -> dict:
        dataset = Dataset(run_dir / "prepare", run_dir / "embed", config.prepare.max_length)
        device = str(choose_device(config.train.device))
        allow = [*config.model.extensions, *(name for other in others.values() for name in other.model.extensions)]
        rule = config.evaluate.history
        models = {name: partial(_trained, run_dir / folder, device, allow, rule) for name, folder in folders.items()}
        for name, other in others.items():
            if name not in folders:
                models[name] = partial(_fitted, other, dataset, out / f".{name}")
        metrics = measure(
            out,
            dataset,
            models,
            name=config.name,
            seed=config.train.seed,
            settings=config.evaluate,
        )
        users = next(row["count"] for row in metrics if row["group"] == "overall")
        return {"users": users, "recipes": list(models)}

    settings = {"name": config.name, "seed": config.train.seed} | config.evaluate.model_dump(exclude={"shown_ks"})
    fitted = [other.model for name, other in others.items() if name not in folders]
    settings["fitted"] = [model.model_dump() for model in fitted]
    inputs: dict[str, Sequence[str]] = {"prepare": [VOCABULARY, SEQUENCES, *(["train/", "valid/"] if fitted else [])]}
    inputs |= dict.fromkeys(folders.values(), ())
    # Texts' vectors and categories are also what lists are judged by.
    inputs |= {
        stage: names
        for stage, names in (("ingest", [f"{ITEMS}/"]), ("embed", [VECTORS, LEXICAL]))
        if (run_dir / stage / MANIFEST).is_file()
    }
    manifest, _ = run_stage(run_dir, "evaluate", settings, inputs, work, force=force)
    return manifest


def _trained(folder: Path, device: str, allow: list[str], rule: str) -> ScoreFunction:
    return Recommender.load(folder, device, bulk=True, allow=allow).ranker.by_history(rule)


def _fitted(config: Config, dataset: Dataset, scratch: Path) -> ScoreFunction:
    settings = config.evaluate
    model, _ = fit_model(
        config.model, config.train, dataset, scratch, exclude_history=settings.exclude_history,
        tail_item=settings.tail_item,
    )  # fmt: skip
    shutil.rmtree(scratch)
    return Ranker(model, bulk=True).by_history(settings.history)
