"""Installed as llmcfsr_merlin.schemas."""
