"""Stage prepare: interactions -> filtered, encoded, time-ordered sequences, leave-one-out splits, Merlin schema.

python pipelines/prepare.py beauty --run runs/beauty        # the same as `llmcfsr prepare ...`
"""

import sys

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.dataset.prepare_stage import run

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
