"""What a step has found so far, on disk from the moment it is known: a step that is cut still leaves that."""

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Skip(Exception):
    """A step, or a part of one, cannot run on this machine; the text says why."""


class Record:
    """The JSON of one step. `status`: running, done, failed, cut or skipped; `found`: name -> figures."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.content: dict = {"status": "running", "seconds": 0.0, "found": {}}
        self._start = time.perf_counter()
        self._write()

    def __call__(self, name: str, value: object) -> None:
        """Note one finding."""
        self.content["found"][name] = value
        self._write()

    def part(self, name: str, work: Callable[[], dict]) -> dict:
        """Run a part of the step and note what it returns, with its seconds; an error is noted and the step goes on."""
        start = time.perf_counter()
        try:
            value = work()
        except Skip as reason:
            value = {"skipped": str(reason)}
        except Exception as error:
            self.content["status"] = "failed"
            value = failure(error)
        value["part_seconds"] = round(time.perf_counter() - start, 2)
        self(name, value)
        print(f"  {name}: {json.dumps(value, default=str)[:600]}", flush=True)
        return value

    def end(self, status: str, **more: object) -> None:
        self.content |= {"status": status, **more}
        self._write()

    def _write(self) -> None:
        self.content["seconds"] = round(time.perf_counter() - self._start, 1)
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.content, indent=1, default=float) + "\n")
        os.replace(partial, self.path)


def failure(error: BaseException) -> dict:
    """An error as what a JSON keeps of it."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"error": f"{type(error).__name__}: {error}"[:500], "where": text[-900:]}
