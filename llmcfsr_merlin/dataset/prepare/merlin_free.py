"""Replaces nvtabular_adapter.py if Merlin is not installed: the same encoded ids and schemas, byte for byte.

No workflow is saved: it consists of pickles of NVTabular's classes.
"""

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pandas as pd

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, USER
from llmcfsr_merlin.runtime.errors import InputError

# `value` is a google.protobuf.Struct of _dims ([[0, null], [1, longest row]]), dtype_item_size, is_list and is_ragged.
_SPLITS = r"""feature {
  name: "%(user)s"
  type: BYTES
  annotation {
    tag: "id"
    tag: "user"
    extra_metadata {
      type_url: "type.googleapis.com/google.protobuf.Struct"
      value: "\n\013\n\005_dims\022\0022\000\n\r\n\007is_list\022\002 \000\n\017\n\tis_ragged\022\002 \000"
    }
  }
}
feature {
  name: "%(item)s"
  value_count {
    min: 1
    max: %(longest)d
  }
  type: INT
  int_domain {
    name: "%(item)s"
    max: %(last_code)d
    is_categorical: true
  }
  annotation {
    tag: "categorical"
    tag: "id"
    tag: "item"
    tag: "list"
    extra_metadata {
      type_url: "type.googleapis.com/google.protobuf.Struct"
      value: "\n8\n\005_dims\022/2-\n\0212\017\n\t\021\000\000\000\000\000\000\000\000\n\002\010\000\n\0302\026\n\t\021\000\000\000\000\000\000\360?\n\t\021%(longest_double)s\n\034\n\017dtype_item_size\022\t\021\000\000\000\000\000\000P@\n\r\n\007is_list\022\002 \001\n\017\n\tis_ragged\022\002 \001"
    }
  }
}
"""  # noqa: E501
_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "'": r"\'", "\\": r"\\"}


def categorify(ids: pd.Series, save: Path | None = None) -> np.ndarray:
    """Encoded ids (int64) that NVTabular's Categorify assigns to raw ids sorted by descending frequency.

    Nothing is left at `save`, not even from an interrupted run that used NVTabular.
    """
    if save is not None:
        shutil.rmtree(save, ignore_errors=True)
    return np.arange(FIRST_ITEM, FIRST_ITEM + len(ids))


def write_split_schema(items: int, max_length: int, path: Path) -> None:
    """Write the schema of train/, valid/ and test/: `items` real items, at most max_length + 1 of them in a row."""
    longest = max_length + 1
    values = {
        "user": USER,
        "item": ITEM,
        "longest": longest,
        "last_code": items + FIRST_ITEM - 1,
        "longest_double": _escaped(struct.pack("<d", longest)),
    }
    Path(path).write_text(_SPLITS % values, encoding="ascii")


def longest_row(path: Path) -> int:
    """The longest row of the splits according to their schema; InputError if it does not say."""
    found = re.search(rf'name: "{ITEM}"\s+value_count \{{[^}}]*max: (\d+)', Path(path).read_text(encoding="utf-8"))
    if found is None:
        raise InputError(f"expected a Merlin schema with the value_count of {ITEM} in {path}: prepare it again")
    return int(found[1])


def _escaped(value: bytes) -> str:
    """Bytes as protobuf text writes them inside of quotes."""
    signs = value.decode("latin-1")
    return "".join(_ESCAPES.get(sign) or (sign if " " <= sign <= "~" else f"\\{ord(sign):03o}") for sign in signs)
