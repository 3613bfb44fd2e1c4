"""The built-in model presets."""

from llmcfsr_merlin.runtime.layout import resource


def presets() -> list[str]:
    """Names of the built-in model presets: LLM-CFSR and its baselines."""
    return sorted(path.stem for path in (resource("pipelines") / "models").glob("*.yaml"))
