import sys

from llmcfsr_merlin.runtime.doctor import main

sys.exit(main())
