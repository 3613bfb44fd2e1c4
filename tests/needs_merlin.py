"""Imported first by a test module that is about Merlin: where that is not installed, the module is skipped."""

import importlib.util

import pytest

import llmcfsr_merlin.runtime.merlin_compat  # noqa: F401

if not importlib.util.find_spec("nvtabular"):
    pytest.skip("needs Merlin, which is not installed here", allow_module_level=True)
