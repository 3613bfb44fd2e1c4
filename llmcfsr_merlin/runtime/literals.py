"""Thread-safe parsing of Python literals."""

import ast
import threading

# Before 3.11.5 Python fails ("AST constructor recursion depth mismatch") if two threads parse at once.
PARSER = threading.Lock()


def literal(text: str) -> object:
    """ast.literal_eval, one thread at a time; raises the same errors."""
    with PARSER:
        return ast.literal_eval(text)
