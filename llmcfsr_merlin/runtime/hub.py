"""Models of the Hugging Face Hub: their files by name, through huggingface_hub and its cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(path: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """A folder as it is, or one in the Hub's cache with these files of the model `org/name`.

    A folder comes first, and a path into a folder that is here (`runs/monday` beside `runs/sunday`) is never a name.
    revision: a branch, tag or commit of the Hub; a commit is read from the cache without asking. InputError for a name
    that the Hub does not give.
    """
    name = str(path)
    if not isinstance(path, str) or not _NAME.fullmatch(name) or Path(name).is_dir() or Path(name).parent.is_dir():
        if revision is not None:
            raise InputError(f"revision is for a model of the Hugging Face Hub, found the folder {path}: leave it out")
        return Path(path)
    # Imported here: a server and a local folder need no Hub.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # what it raises differs between versions
        at = "" if revision is None else f" at revision {revision!r}"
        raise InputError(
            f"expected a folder or a model of the Hugging Face Hub, found no folder {name!r} and none there"
            f"{at} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
