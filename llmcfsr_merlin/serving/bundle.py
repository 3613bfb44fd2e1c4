"""The part of a trained run that serving needs, as files inside a step's version folder."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmcfsr_merlin.dataset.names import MODEL_CONFIG, MODEL_WEIGHTS, VOCABULARY
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import MANIFEST, Manifest, hash_json

FOLDER = "bundle"  # inside <model>/<version>/
GRAPHS = {"torchscript": "model.pt", "onnx": "model.onnx"}  # instead of it, files that Triton's backends look for
_ALL = (VOCABULARY, MODEL_CONFIG, MODEL_WEIGHTS)
# encode and decode hold no weights, so a step of a large model stays small.
FILES = {
    "recommend": _ALL,
    "rank": _ALL,
    "encode": (VOCABULARY, MODEL_CONFIG),
    "decode": (VOCABULARY, MODEL_CONFIG),
}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. hash: hex sha256 of the checksums of its files, the same in every step; tag: int64 of it.

    history_rule: as of Ensemble.
    """

    directory: Path
    hash: str
    max_length: int
    history_rule: str | None = None

    @property
    def tag(self) -> int:
        """The first 60 bits of the hash, which the steps pass to each other."""
        return int(self.hash[:15], 16)

    @classmethod
    def open(cls, directory: str | Path, files: tuple[str, ...] = _ALL) -> "Bundle":
        """Check the sha256 of `files` against the manifest, then read the description; InputError on any difference."""
        directory = Path(directory)
        if (directory / "train").is_dir():
            directory = directory / "train"
        manifest = Manifest.load(directory)
        manifest.verify(directory, files)
        missing = [name for name in _ALL if name not in manifest.files]
        if missing:
            raise InputError(f"expected a trained model in {directory}, found no {missing[0]}: run `llmcfsr train`")
        description = json.loads((directory / MODEL_CONFIG).read_text())
        identity = hash_json({name: manifest.files[name] for name in _ALL})
        return cls(directory, identity, description["max_length"], description.get("history_rule"))

    def copy(self, target: Path, step: str) -> None:
        """Copy the files of one step, with the manifest, into `target` (created)."""
        target.mkdir(parents=True)
        for name in (*FILES[step], MANIFEST):
            shutil.copyfile(self.directory / name, target / name)
