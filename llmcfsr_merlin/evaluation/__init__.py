"""From scores to tables: cases and their candidates, ranks, metrics by group, baselines, paired tests, report.

Nothing here depends on the neural model. A scorer is any callable `score(histories) -> scores` with histories int64 [B,
L] (encoded ids, oldest first, right-padded with 0) and scores float32 [B, V], V = items + FIRST_ITEM.
"""

from llmcfsr_merlin.runtime.arrow import check_arrow

check_arrow()
