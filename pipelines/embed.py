"""Stage embed: item attributes -> prompts -> language model -> semantic vectors.

python pipelines/embed.py beauty --run runs/beauty        # the same as `llmcfsr embed ...`
"""

import sys

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.text.embed_stage import run

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
