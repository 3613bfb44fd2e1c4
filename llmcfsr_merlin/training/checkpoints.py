"""Complete Trainer checkpoints: a file written last lists what belongs to each."""

import json
from pathlib import Path

from llmcfsr_merlin.runtime.files import remove, sha256_file, sync, write_json

COMPLETE = "complete.json"  # file name -> size and sha256; written after all others are synced
_STATE = "trainer_state.json"


def seal_checkpoint(folder: Path) -> None:
    """Sync the files of a checkpoint and record them."""
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = [path.stat().st_size, sha256_file(path)]
    write_json(folder / COMPLETE, files)
    sync(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is unchanged."""
    try:
        files = json.loads((folder / COMPLETE).read_text())
        return all(
            (folder / name).stat().st_size == size and sha256_file(folder / name) == sha256
            for name, (size, sha256) in files.items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
        return False


def whole_checkpoints(work: Path) -> list[Path]:
    """The checkpoints in `work` that training can resume from, oldest first; incomplete ones are removed.

    One whose best epoch's weights are missing would end with other weights, so it counts as incomplete. The path of the
    best epoch is updated, in case the run was moved.
    """
    work = Path(work)
    folders = sorted(work.glob("checkpoint-*"), key=_step)
    whole = [folder for folder in folders if is_whole(folder)]
    names = {folder.name for folder in whole}
    kept = [folder for folder in whole if _has_best(folder, names)]
    for folder in folders:
        if folder not in kept:
            remove(folder)
    return kept


def remove_old_checkpoints(work: Path, best: str | None) -> None:
    """Keep the last checkpoint and the best one; if these are the same, the one before it too.

    Not left to the Trainer (save_total_limit), which removes old ones before the new one is known to be complete.
    """
    folders = sorted(work.glob("checkpoint-*"), key=_step)
    kept = {folders[-1].name, Path(best).name if best else folders[-1].name}
    for folder in folders[: -2 if len(kept) == 1 else -1]:
        if folder.name not in kept:
            remove(folder)


def stale_epochs(folder: Path, metric: str) -> tuple[int, int]:
    """A checkpoint's number of epochs, and how many of them since the best one."""
    state = json.loads((folder / _STATE).read_text())
    best, stale, epochs = None, 0, 0
    for entry in state["log_history"]:
        if metric in entry:
            epochs += 1
            best, stale = (entry[metric], 0) if best is None or entry[metric] > best else (best, stale + 1)
    return epochs, stale


def _has_best(folder: Path, names: set[str]) -> bool:
    state = json.loads((folder / _STATE).read_text())
    best = state.get("best_model_checkpoint")
    if best is None:
        return True
    if Path(best).name not in names:
        return False
    here = str(folder.with_name(Path(best).name))
    if best != here:
        write_json(folder / _STATE, state | {"best_model_checkpoint": here})
        (folder / COMPLETE).unlink()
        seal_checkpoint(folder)
    return True


def _step(folder: Path) -> int:
    number = folder.name.rsplit("-", 1)[1]
    return int(number) if number.isdecimal() else -1
