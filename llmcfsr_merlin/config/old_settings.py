"""Translates settings of version 0.1."""

from typing import Any

_NETWORK = (
    "backbone", "views", "hidden", "layers", "heads", "dropout", "cross_attention", "fuse_embedding", "fuse_sequence",
    "fuse_prediction", "pca_init", "whiten", "cold_shrinkage", "item_dropout",
)  # fmt: skip
_DEFAULTS = {
    "content_match": True, "transition_neighbours": 100, "lexical_share": 0.3, "views": ["collaborative", "semantic"],
    "fuse_embedding": True, "fuse_sequence": True, "fuse_prediction": True, "pca_init": True, "whiten": True,
    "cold_shrinkage": 0.0, "item_dropout": 0.1,
}  # fmt: skip


def upgrade_settings(model: dict) -> dict:
    """The section `model` of version 0.1, whose defaults were the full method, as scorers."""
    old = _DEFAULTS | model
    scorers: dict[str, dict] = {"network": {key: old[key] for key in _NETWORK if key in old}}
    if old["content_match"]:
        scorers["content"] = {"lexical_share": old["lexical_share"]}
    if old["transition_neighbours"]:
        scorers["transitions"] = {"neighbours": old["transition_neighbours"]}
    return {"name": old.get("name", "llm_cfsr"), "scorers": scorers}


_RENAMED = {
    **{f"model.{key}": f"model.scorers.network.{key}" for key in _NETWORK},
    "model.lexical_share": "model.scorers.content.lexical_share",
    "evaluate.knn_neighbours": "model.scorers.item_knn.neighbours",
    "evaluate.knn_shrinkage": "model.scorers.item_knn.shrinkage",
    "evaluate.ease_lambda": "model.scorers.ease.regularisation",
    "evaluate.ease_memory_gb": "model.scorers.ease.memory_gb",
}


def renamed(path: str, value: Any) -> dict[str, Any] | None:
    """Today's equivalent of a setting of version 0.1; None for a current setting."""
    if path in _RENAMED:
        return {_RENAMED[path]: value}
    if path == "embed.reduction" and value == "whiten":  # `whiten` keeps the network's semantic view as it was
        return {path: "pca"}
    if path == "model.content_match":
        return {} if value else {"model.scorers.content": None}
    if path == "model.transition_neighbours":
        return {"model.scorers.transitions.neighbours": value} if value else {"model.scorers.transitions": None}
    return None
