"""From raw logs to sequences: names, readers, preparation, vocabulary, and the dataset that models are fitted on."""

from llmcfsr_merlin.runtime.arrow import check_arrow

check_arrow()
