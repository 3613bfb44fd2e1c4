"""The prepared data of a run as one object, shared by all of its models."""

import copy
import glob
import tempfile
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.item_vectors import load_item_table, vector_dimension
from llmcfsr_merlin.dataset.names import LEXICAL, SEQUENCES, SPLITS, VECTORS, VOCABULARY
from llmcfsr_merlin.dataset.user_histories import read_histories
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.lock import run_lock
from llmcfsr_merlin.runtime.manifest import MANIFEST, Manifest

_FOLDERS = {"semantic": VECTORS, "lexical": LEXICAL}


class Shape(NamedTuple):
    """The sizes of a model's arrays.

    n_items: V, the rows of every item-side array, the three reserved ones included. max_length: longest history that is
    used. semantic, lexical: dimensions of the item vectors, None without.
    """

    n_items: int
    max_length: int
    semantic: int | None = None
    lexical: int | None = None


class Dataset:
    """Sequences, splits, vocabulary and item vectors of the stages `prepare` and `embed`, loaded lazily.

    >>> dataset = Dataset.load("runs/beauty")                       # doctest: +SKIP
    >>> dataset = Dataset.from_frames(interactions, items)          # doctest: +SKIP
    >>> dataset.shape.n_items, len(dataset.files("train"))          # doctest: +SKIP
    """

    def __init__(self, prepared: Path, embedded: Path | None = None, max_length: int = 50):
        """prepared, embedded: folders of the stages. max_length: longest history that a model reads."""
        self.prepared, self.embedded, self.max_length = Path(prepared), embedded and Path(embedded), max_length
        self.run: Path | None = None
        """The run directory, if the dataset was loaded from one or created from frames."""
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._hidden: tuple[str, ...] = ()
        self._read: tuple[str, ...] = tuple(_FOLDERS)

    @classmethod
    def load(cls, run: str | Path) -> "Dataset":
        """The dataset of a run directory, with its item vectors if stage `embed` has been run.

        Files are checked against their manifests; InputError says what is missing or changed.
        """
        run = Path(run)
        config = Config.recorded(run)
        Manifest.load(run / "prepare").verify(run / "prepare", remembered=True)
        embedded = run / "embed" if (run / "embed" / MANIFEST).is_file() else None
        if embedded:
            Manifest.load(embedded).verify(embedded, remembered=True)
        dataset = cls(run / "prepare", embedded, config.prepare.max_length)
        dataset.run = run
        return dataset

    @classmethod
    def from_frames(
        cls,
        interactions: pd.DataFrame,
        items: pd.DataFrame | None = None,
        *,
        config: Config | None = None,
        run: str | Path | None = None,
    ) -> "Dataset":
        """A dataset from dataframes, through the stages `ingest` and `prepare`: the same rules as for files.

        interactions: columns user_id, item_id and timestamp (or as config.data.columns names them). items: item_id and
        attributes. config: settings of data, prepare and cluster. run: where the run directory is written; None: into a
        temporary folder that is deleted with the dataset. Raises InputError if no interactions are left.
        """
        from llmcfsr_merlin.dataset import ingest_stage, prepare_stage

        temporary = None
        if run is None:
            temporary = tempfile.TemporaryDirectory(prefix="llmcfsr-")
            run = temporary.name
        raw = Path(run) / "frames"
        raw.mkdir(parents=True, exist_ok=True)
        settings: dict = {"data.format": "table"}
        for name, frame in (("interactions", interactions), ("items", items)):
            settings[f"data.{name}"] = ()
            if frame is not None:
                frame.to_parquet(raw / f"{name}.parquet", index=False)
                settings[f"data.{name}"] = (glob.escape(str(raw / f"{name}.parquet")),)
        config = (config or Config()).with_settings(settings)
        with run_lock(Path(run)):
            config.record(Path(run))
            ingest_stage.run(config, Path(run))
            prepare_stage.run(config, Path(run))
        dataset = cls.load(run)
        dataset._temporary = temporary
        return dataset

    def reloaded(self) -> "Dataset":
        """The dataset of the run directory's current state, e.g. after stage `embed`."""
        if self.run is None:
            raise InputError("expected a dataset of a run directory, found one without")
        dataset = Dataset.load(self.run)
        dataset._temporary = self._temporary
        return dataset

    @property
    def config(self) -> Config:
        """The settings of its run directory; the defaults without one."""
        return Config() if self.run is None else Config.recorded(self.run)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.prepared / VOCABULARY)

    @property
    def train_counts(self) -> np.ndarray:
        """Training interactions per item, int64 [V], zero on reserved rows."""
        return self.vocabulary.train_counts

    @cached_property
    def shape(self) -> Shape:
        dimensions = {name: vector_dimension(self._vectors_dir(name)) for name in self._read if self.embedded}
        return Shape(len(self.vocabulary), self.max_length, **dimensions)

    def files(self, split: str) -> list[str]:
        """Part files of `train`, `valid` or `test` in order; InputError if there is none."""
        if split not in SPLITS or split in self._hidden:
            raise ValueError(f"expected a split out of {', '.join(s for s in SPLITS if s not in self._hidden)}")
        files = sorted(str(path) for path in (self.prepared / split).glob("*.parquet"))
        if not files:
            folder = self.prepared / split
            raise InputError(f"expected Parquet files in {folder}, found none: run `llmcfsr prepare` first")
        return files

    def sequences(self, held_out: int = 2) -> Iterator[list[np.ndarray]]:
        """Sequences of encoded item ids, int64, without held-out items, in blocks of users.

        held_out 2 is the training part; 1 adds validation; 0 adds test: one item each, or what is between and after the
        times of a temporal split. Users without an interaction in the part are skipped.
        """
        if self._hidden and held_out < 1:
            raise ValueError("the test items of this dataset are hidden")
        for block in read_histories(self.prepared / SEQUENCES):
            ends = {2: block.train, 1: block.valid}.get(held_out) if held_out else map(len, block.sequences)
            if ends is None:
                raise ValueError(f"expected held_out 0, 1 or 2, found {held_out}")
            yield [sequence[:end] for sequence, end in zip(block.sequences, ends) if end > 0]

    def vectors(self, name: str) -> np.ndarray:
        """`semantic` or `lexical` vectors, float32 [V, D]; reserved rows are zero."""
        return load_item_table(self.vocabulary.ids.tolist(), self._vectors_dir(name)).vectors

    def _vectors_dir(self, name: str) -> Path:
        if self.embedded is None:
            raise InputError(f"expected {name} vectors of the items, found a dataset without them: run stage embed")
        return self.embedded / _FOLDERS[name]

    def reading(self, vectors: Collection[str]) -> "Dataset":
        """A view that loads only these vectors (semantic, lexical)."""
        return self._changed(_read=tuple(vectors))

    def without_test(self) -> "Dataset":
        """A view for model selection: reading a test item is an error."""
        return self._changed(_hidden=("test",))

    def _changed(self, **attributes: object) -> "Dataset":
        other = copy.copy(self)
        other.__dict__.pop("shape", None)
        other.__dict__.update(attributes)
        return other
