"""With this folder first in PYTHONPATH Merlin is not installed, for Python and all that it starts.

Its packages are neither found by imports nor by importlib.metadata, as where pip never put them.
"""

import importlib.machinery
import re
import sys

MODULES = {"merlin", "nvtabular", "transformers4rec"}
DISTRIBUTIONS = {"merlin-core", "merlin-dataloader", "merlin-models", "merlin-systems", "nvtabular", "transformers4rec"}


class WithoutMerlin(importlib.machinery.PathFinder):
    """The finder of installed packages, without Merlin's."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in MODULES:
            return None
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *arguments, **named):
        for found in super().find_distributions(*arguments, **named):
            if re.sub("[-_.]+", "-", found.metadata["Name"] or "").lower() not in DISTRIBUTIONS:
                yield found


sys.meta_path[:] = [WithoutMerlin if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
for name in [name for name in sys.modules if name.partition(".")[0] in MODULES]:  # namespaces made by .pth files
    del sys.modules[name]
