"""Shows the library's log on stderr; stdout is reserved for a verb's output."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Lines(logging.Handler):
    """Writes to the current sys.stderr; characters that it cannot encode are replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + "\n"
            encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
            sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"warning: {line}" if record.levelno == logging.WARNING else line


@contextmanager
def shown(level: int = logging.INFO, *, origin: bool = False) -> Iterator[None]:
    """Show log records from `level` on, replacing existing handlers meanwhile.

    origin: prefix each line with its time and module.
    """
    logger, lines = logging.getLogger("llmcfsr_merlin"), _Lines()
    lines.setFormatter(_Format("%(asctime)s %(name)s: %(message)s" if origin else "%(message)s"))
    before = logger.handlers[:], logger.level
    logger.handlers[:] = [lines]
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.handlers[:] = before[0]
        logger.setLevel(before[1])
