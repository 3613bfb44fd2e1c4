"""Item attributes to semantic vectors: prompts, encoders, tuning, judging."""

from llmcfsr_merlin.arrow import check_arrow

check_arrow()
