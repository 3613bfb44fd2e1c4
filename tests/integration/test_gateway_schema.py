"""schemathesis asks a served gateway what its OpenAPI document allows, and what it forbids."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.serving.launch import find_tritonserver
from llmcfsr_merlin.serving.repository import export
from tests.gateway_process import Served
from tests.load import note
from tests.served import write_model

pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra `test`)")
pytest.importorskip("fastapi", reason="the extra `gateway` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.skipif(find_tritonserver() is None, reason="no tritonserver in PATH nor in nvidia-pytriton"),
]


@pytest.mark.timeout(900)
def test_the_gateway_does_what_its_document_says(tmp_path):
    """All checks but one: of a method that a path does not have (TRACE is answered by the parser of HTTP itself)."""
    export(write_model(tmp_path / "train"), tmp_path / "repo", ServeConfig(max_top_k=50))
    served = Served(tmp_path / "repo", tmp_path / "stderr")
    try:
        tool = Path(sys.executable).with_name("schemathesis")
        url = f"http://127.0.0.1:{served.port}/openapi.json"
        command = [tool, "run", url, "--max-examples", "50", "--checks", "all", "--exclude-checks=unsupported_method"]
        done = subprocess.run([*command, "--no-color"], capture_output=True, text=True, check=False, cwd=tmp_path)
        note("schemathesis", said=done.stdout.splitlines()[-1:])
        assert done.returncode == 0, done.stdout[-6000:]
    finally:
        assert served.stop() == 0
