"""Before any test module imports Merlin by itself."""

import llmcfsr_merlin.runtime.merlin_compat  # noqa: F401
