"""The model presets that ship with the project."""

from llmcfsr_merlin.runtime.layout import resource


def presets() -> list[str]:
    """Names of the model presets that ship with the project: LLM-CFSR and its baselines."""
    return sorted(path.stem for path in (resource("pipelines") / "models").glob("*.yaml"))
