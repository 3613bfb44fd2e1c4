"""Errors that a user can cause and fix. The CLI prints them as one line and exits with 1."""


class InputError(ValueError):
    """Bad input. The message says, in one line, what was expected, what was found and what to do."""


class MissingDependency(ImportError):
    """An optional dependency is not installed. The message names the package and the command that installs it."""
