"""Stage `export`: the trained model as a Triton model repository.

python pipelines/export.py beauty --run runs/beauty        # the same as `llmcfsr export ...`
"""

import sys

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.serving.export_stage import run

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
