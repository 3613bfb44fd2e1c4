"""Stage ingest: raw logs and item metadata -> Parquet of interactions and items.

python pipelines/ingest.py beauty --run runs/beauty        # the same as `llmcfsr ingest ...`
"""

import sys

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.dataset.ingest_stage import run

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
