"""Raw logs to partitions: reading, cleaning, shuffling and writing sequences."""

from llmcfsr_merlin.arrow import check_arrow

check_arrow()
