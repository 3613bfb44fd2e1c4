"""Puts an update's model in front of users: a new version of the repository that their server has, and its loading."""

import logging
from pathlib import Path

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.bundle import FOLDER, Bundle
from llmcfsr_merlin.serving.probe import probe
from llmcfsr_merlin.serving.repository import FRONT, layout, publish, repository_of, versions
from llmcfsr_merlin.serving.server import load_version

_log = logging.getLogger(__name__)


def put_out(config: Config, run: Path, repository: Path, url: str | None, key_file: Path | None) -> int:
    """Add the model of `run` to a repository, unless it is the newest one there; have its server load it if `url` is
    given (Triton's HTTP address; key_file: as of `llmcfsr serve`). Returns the version.

    The version before stays, and answers until the new one is loaded whole. InputError if it does not load.
    """
    if url is not None and key_file is None:
        raise InputError("--url: expected --key-file too, the file of the line `ready:`, found none")
    repository = repository_of(repository)
    newest = versions(repository)[-1]
    step = "rank" if layout(repository) == "ensemble" else FRONT
    bundle = Bundle.open(run)
    if Bundle.open(repository / step / str(newest) / FOLDER).hash != bundle.hash or not _pointed_at(repository, newest):
        newest = publish(run, repository, config.serve)
        _log.info("  version %d in %s", newest, repository)
    if url is not None and key_file is not None:
        load_version(url, _key(key_file), repository)
        if (trouble := probe(url, 30.0)) is not None:
            raise InputError(f"the server at {url} {trouble} after version {newest} was loaded: look at its log")
        _log.info("  loaded by %s", url)
    return newest


def _pointed_at(repository: Path, version: int) -> bool:
    """Whether the front model answers from this version: publishing may have been stopped before its last step."""
    front = repository / FRONT
    text = (front / "config.pbtxt").read_text()
    return f"model_version: {version}" in text if layout(repository) == "ensemble" else (front / str(version)).is_dir()


def _key(path: Path) -> str:
    try:
        return path.read_text().strip().partition(": ")[2]
    except OSError as error:
        raise InputError(f"--key-file: {path} cannot be read ({error.strerror}): see the line `ready:`") from error
