"""Stage evaluate: the model and its baselines, ranked on the same stored cases.

python pipelines/evaluate.py beauty --run runs/beauty        # the same as `llmcfsr evaluate ...`
"""

import sys

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.evaluation.evaluate_stage import run

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
