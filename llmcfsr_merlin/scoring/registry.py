"""Scorers by name: the built-in ones, and `module:Class` from anywhere."""

from importlib import import_module

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import load_class
from llmcfsr_merlin.scoring.scorer import Scorer

_HERE = "llmcfsr_merlin.scoring.scorers"
BUILT_IN = {
    "network": f"{_HERE}.network:NetworkScorer",
    "content": f"{_HERE}.content:ContentScorer",
    "transitions": f"{_HERE}.transitions:TransitionScorer",
    "repeats": f"{_HERE}.repeats:RepeatScorer",
    "popularity": f"{_HERE}.popularity:PopularityScorer",
    "item_knn": f"{_HERE}.item_knn:ItemKNNScorer",
    "ease": f"{_HERE}.ease:EASEScorer",
}


def scorer_class(name: str) -> type[Scorer]:
    """The class of a scorer; InputError if the name is unknown, not a Scorer, or not allowed (runtime/extensions)."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    if ":" not in name:
        raise InputError(f"expected a scorer out of {', '.join(BUILT_IN)} or module:Class, found {name!r}")
    found = load_class(name)
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise InputError(f"expected {name} to be a subclass of llmcfsr_merlin.scoring.scorer.Scorer")
    return found
