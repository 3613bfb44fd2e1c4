"""Model card: a README.md beside a trained model that says what it is, what it was trained on and how good it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jinja2
import yaml

from llmcfsr_merlin import __version__
from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import KEPT, MASKED, MODEL_CONFIG, TRAIN_HISTORY
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.layout import CARD
from llmcfsr_merlin.runtime.manifest import Manifest
from llmcfsr_merlin.text.encoders.known import licence_of
from llmcfsr_merlin.text.item_encoder import EncoderRecipe

UPDATE = "update"  # the split of a day's update (dataset/prepare/day.py)
_GROUPS = {"overall": "all items", "head_item": "head items", "tail_item": "tail items", "cold_item": "cold items"}
_RULES = {
    MASKED: "the user's own items are excluded from the ranking, and a target among them is not found",
    KEPT: "the user's own items are ranked too",
}


def write_card(
    out: Path, config: Config, run_dir: Path, model_dir: Path, counts: dict, metrics: Sequence[dict] = ()
) -> None:
    """Write CARD into `out`.

    run_dir: the run, for what its stages prepare and embed recorded. model_dir: the folder of model.json. counts: those
    of the stage train. metrics: rows of stage evaluate (each with its history rule) for this very model, if there are.
    """
    described = json.loads((model_dir / MODEL_CONFIG).read_text())
    path = model_dir / TRAIN_HISTORY
    history = json.loads(path.read_text()) if path.is_file() else []
    (out / CARD).write_text(card_text(config, described, run_dir, counts, history, metrics), encoding="utf-8")


def card_text(
    config: Config,
    description: dict,
    run_dir: Path,
    counts: dict,
    history: Sequence[dict] = (),
    metrics: Sequence[dict] = (),
) -> str:
    """The card. description: as in model.json. history: a dict per epoch of the training. Others: as in write_card."""
    served, data = config.evaluate.history, _counts(run_dir / "prepare")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2").render(
        name=config.model.name,
        recipe=config.name,
        version=__version__,
        shape=description["shape"],
        scorers=list(description["model"]["scorers"]),
        parameters=counts.get("parameters"),
        data=data,
        split=UPDATE if "day_users" in data else config.prepare.split,
        filter=config.prepare.filter,
        epoch=max(history, key=lambda epoch: epoch["ndcg@10"], default=None),
        patience=config.train.patience,
        weights=counts.get("weights", {}),
        history_weights=description.get("history_weights", {}),
        served=served,
        rule=_RULES[served],
        tail_item=config.evaluate.tail_item,
        popularity_from=config.evaluate.popularity_from,
        results=_results(metrics, config.model.name, served),
        encoder=_encoder(run_dir / "embed") if config.model.reads else None,
        settings=yaml.safe_dump(config.model_dump(mode="json", include={"model", "train"}), sort_keys=False),
    )


def _counts(stage: Path) -> dict:
    """What the stage reported; empty if the run has none, as one that new items were added to."""
    try:
        return Manifest.load(stage).counts
    except InputError:
        return {}


def _encoder(embedded: Path) -> dict | None:
    try:
        recipe = asdict(EncoderRecipe.load(embedded))
    except InputError:
        return None
    name = recipe["model"]["name"]
    if Path(name).expanduser().is_absolute():  # where a folder stands on this machine is nobody else's matter
        recipe["model"]["name"] = Path(name).name
    return recipe | {"licence": licence_of(name)}


def _results(metrics: Sequence[dict], model: str, served: str) -> list[dict]:
    """Rows of the table of full ranking: recipe, history rule, and NDCG@10 and HR@10 by group; the model first."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in metrics:
        if row["protocol"] == "full" and row["group"] in _GROUPS and row["metric"] in ("ndcg@10", "hr@10"):
            values = found.setdefault((row["recipe"], row["history"]), {})
            values.setdefault(_GROUPS[row["group"]], {})[row["metric"]] = row["value"]
    order = sorted(found, key=lambda key: (key[0] != model, key[0], key[1] != served))
    return [{"recipe": recipe, "history": rule, "groups": found[recipe, rule]} for recipe, rule in order]
