"""Shims to import Transformers4Rec 23.12 with transformers newer than 4.30: import this before it.

Shims for its Trainer are in training/trainer.py. With transformers 4.27 to 4.30 nothing changes.
"""

import dataclasses
import importlib
import os
import sys
from types import ModuleType
from typing import Any

import llmcfsr_merlin.runtime.merlin_compat  # noqa: F401

os.environ.setdefault("USE_TF", "0")  # transformers 4 would import TensorFlow if it is installed


def _restore_names() -> None:
    for name in ("transformers.modeling_utils", "transformers.trainer"):
        importlib.import_module(name)
    hub: Any = sys.modules["transformers"]  # transformers 5 replaces the module while it is being imported
    if not _has(hub, "TFTrainingArguments"):  # transformers 5.0 dropped TensorFlow; T4Rec's config derives from it

        @dataclasses.dataclass
        class TFTrainingArguments(hub.TrainingArguments):
            """Stand-in for the base class of T4Rec's TensorFlow arguments."""

        hub.TFTrainingArguments = TFTrainingArguments
    if not _has(hub, "TransfoXLConfig"):  # transformers 4.36 deprecated Transformer-XL, 5.0 removed it
        hub.TransfoXLConfig = type("TransfoXLConfig", (hub.PretrainedConfig,), {})
    if not _has(hub.modeling_utils, "SequenceSummary"):  # transformers 4.50 moved it to the models that use it
        xlnet = importlib.import_module("transformers.models.xlnet.modeling_xlnet")
        hub.modeling_utils.SequenceSummary = xlnet.XLNetSequenceSummary


def _has(module: ModuleType, name: str) -> bool:
    try:
        return getattr(module, name, None) is not None
    except ImportError:  # a lazy name whose module is not installed
        return False


_restore_names()
