"""Installed as llmcfsr_merlin.triton_repo."""
