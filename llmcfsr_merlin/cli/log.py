"""What the library logs, as the lines that the command line shows on stderr; stdout is for what a verb answers."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Lines(logging.Handler):
    """To today's stderr, whatever it is by then; characters that it cannot write are replaced."""

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
    """Show what the library logs from `level` on, in the place of what showed it before.

    origin: with the time and the module of each line.
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
