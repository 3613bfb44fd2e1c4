"""Installed as llmcfsr_merlin.pipelines."""
