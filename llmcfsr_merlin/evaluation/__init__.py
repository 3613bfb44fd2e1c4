"""From scores to tables: cases and their candidates, ranks, metrics by group, baselines, paired tests, report.

Nothing here knows the neural model. A scorer is any callable `score(histories) -> scores` with histories int64 [B, L]
(codes, oldest first, padded with 0 on the right) and scores float32 [B, V], V = items + FIRST_ITEM.
"""

from llmcfsr_merlin.runtime.arrow import check_arrow

check_arrow()
