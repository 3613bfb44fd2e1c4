"""No code of ours runs what a file from outside says: no pickles, no eval, no shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("llmcfsr_merlin", "pipelines", "triton_repo")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.load", "Workflow.load", "nvt.Workflow.load", "os.system", "os.popen"}
KEYWORDS = {("shell", True), ("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True)}


def violations(source: str) -> list[str]:
    """What a source imports or calls that can run foreign code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.endswith(("torch.load", "Workflow.load")):
                found.append(name)
            found += [
                f"{word.arg}={word.value.value}"
                for word in node.keywords
                if isinstance(word.value, ast.Constant) and (word.arg, word.value.value) in KEYWORDS
            ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_code_runs_nothing_from_outside(path):
    assert not violations(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "exec(code)",
        "run(x, shell=True)",
        "nvtabular.Workflow.load('x')",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
    ],
)
def test_the_gate_sees(source):
    assert violations(source)


@pytest.mark.parametrize("source", ["ast.literal_eval('1')", "model.eval()", "json.load(f)", "run(x, shell=False)"])
def test_the_gate_lets_pass(source):
    assert not violations(source)
