"""Layout: the stages of a run directory, and this project's own folders."""

from pathlib import Path

# Stages in order; each one owns the directory of its name in the run directory. The number is the format of what it
# writes: raise it when the same settings and inputs give different output, so that earlier runs redo the stage.
# 1 is what version 0.1.0 wrote.
FORMATS = {"ingest": 1, "prepare": 1, "embed": 1, "train": 1, "evaluate": 3, "export": 2}
STAGES = tuple(FORMATS)
BASELINES = "baselines"  # folder of the run: one stage directory per neural baseline
CARD = "README.md"  # of a model's folder: people may edit it, so a stage does not run again for it
UPDATE = "update.json"  # in the run directory of an update: the command that made it, which its stages need again
RECORD = "config.json"  # in the run directory: the settings of its last command

_PACKAGE = Path(__file__).resolve().parent.parent


def resource(name: str) -> Path:
    """This project's own folder: `pipelines`, `schemas` or `triton_repo`.

    In a checkout it is beside the package; in an installed wheel inside it.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
