import pytest

from llmcfsr_merlin.explore.explorer import Explorer
from tests.explorable import write_model, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("explore") / "run")
    write_model(run, run / "baselines" / "other", seed=1)
    return run


@pytest.fixture(scope="session")
def explorer(run):
    return Explorer([run, run / "baselines" / "other"])
