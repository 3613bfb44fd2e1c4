"""Stage train: sequences and item vectors -> the fitted model, and beside it the baselines that are trained.

python pipelines/train.py beauty --run runs/beauty        # the same as `llmcfsr train ...`
"""

import sys

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.training.train_stage import run

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
