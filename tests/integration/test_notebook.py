"""The notebook of the documentation runs: DataFrame -> fit -> recommend -> serve."""

from pathlib import Path

import pytest

from llmcfsr_merlin.serving.launch import find_tritonserver

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (Python 3.11 and newer: extra `test`)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (Python 3.11 and newer: extra `test`)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (Python 3.11 and newer: extra `test`)")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_steps.ipynb"


def test_the_notebook_is_stored_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


def test_the_notebook_runs(monkeypatch):
    """Without a tritonserver, all but the cell that serves (tagged `triton`)."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # this checkout, whichever one is installed
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if find_tritonserver() is None:
        notebook.cells = [cell for cell in notebook.cells if "triton" not in cell.metadata.get("tags", ())]
    done = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    served = [cell for cell in done.cells if "triton" in cell.metadata.get("tags", ())]
    assert all(cell.outputs for cell in served)
