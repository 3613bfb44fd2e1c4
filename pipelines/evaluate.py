"""Stage evaluate: the trained network and the baselines, ranked on the same stored cases."""

from functools import partial
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import SEQUENCES, VOCABULARY
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.evaluation.measure import measure
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.layout import BASELINES
from llmcfsr_merlin.runtime.stage import Manifest, run_stage
from llmcfsr_merlin.scoring.scorers.closed_form import fit_baseline
from llmcfsr_merlin.training.trainer import choose_device


def run(config: Config, run_dir: Path, *, force: bool = False) -> Manifest:
    """Write run_dir/evaluate (metrics, ranks a user, stored candidates) from run_dir/prepare, train and baselines."""
    run_dir = Path(run_dir)
    neural = config.neural_baselines
    folders = {config.model.name: "train"} | {name: f"{BASELINES}/{name}" for name in neural}

    def work(out: Path) -> dict:
        prepared = run_dir / "prepare"
        train_counts = Vocabulary.load(prepared / VOCABULARY).train_counts
        device = str(choose_device(config.train.device))
        recipes = {name: partial(_scorer, run_dir / folder, device) for name, folder in folders.items()}
        for name in config.evaluate.baselines:
            if name not in folders:
                recipes[name] = partial(fit_baseline, name, prepared, train_counts, config.evaluate)
        metrics = measure(
            out,
            prepared,
            recipes,
            dataset=config.name,
            seed=config.train.seed,
            max_length=config.prepare.max_length,
            settings=config.evaluate,
        )
        users = next(row["count"] for row in metrics if row["group"] == "overall")
        return {"users": users, "recipes": list(recipes)}

    settings = {"name": config.name, "seed": config.train.seed} | config.evaluate.model_dump()
    inputs = {"prepare": [VOCABULARY, SEQUENCES]} | dict.fromkeys(folders.values(), ())
    manifest, _ = run_stage(run_dir, "evaluate", settings, inputs, work, force=force)
    return manifest


def _scorer(folder: Path, device: str):
    return Recommender.load(folder, device, bulk=True).ranker.scores
