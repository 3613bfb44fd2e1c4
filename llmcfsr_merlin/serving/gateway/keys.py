"""API keys: who may ask, from a file that its owner alone can read."""

import hashlib
import hmac
import ipaddress
import re
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError

_SHORTEST = 16  # characters of a key
_LINE = re.compile(r"([\w.@-]{1,64})[ \t:]+([!-~]+)")


class Keys:
    """The keys of a file, one `name key` per line; empty lines and those that start with # are ignored.

    A file of changed content or mode is read again (`refresh`), so that keys come and go without a restart. Raises
    InputError if the file cannot be read, if others may read it, or if a line is none; once per change.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._names: dict[bytes, str] = {}
        self._seen: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed; after an error the keys of before stay."""
        before, self._seen = self._seen, self._state()
        if self._seen == before:
            return
        try:
            mode, text = self.path.stat().st_mode, self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-keys: {self.path} cannot be read ({error})") from error
        if mode & 0o007:
            raise InputError(f"--api-keys: other users may read {self.path}: chmod o-rwx {self.path}")
        self._names = _parsed(text, self.path)

    def _state(self) -> tuple[int, ...]:
        """What changes with the file's content or mode; the number of the error if there is no file."""
        try:
            status = self.path.stat()
        except OSError as error:
            return (error.errno or 1,)
        return status.st_mtime_ns, status.st_size, status.st_mode

    def name(self, key: bytes) -> str | None:
        """Whose key it is, None for an unknown one. The time does not tell how much of a key was right."""
        given, found = hashlib.sha256(key).digest(), None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found


def _parsed(text: str, path: Path) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or len(match[2]) < _SHORTEST:
            raise InputError(
                f"--api-keys: {path}, line {number}: expected a name and a key of at least {_SHORTEST} characters, e.g."
                " `shop $(openssl rand -hex 32)`"
            )
        names[hashlib.sha256(match[2].encode()).digest()] = match[1]
    if not names:
        raise InputError(f"--api-keys: expected at least one `name key` in {path}, found none")
    return names


def sent_key(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The key of a request: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


def check_exposure(host: str, keys: object, open_to_all: bool) -> None:
    """InputError if everybody in the network could reach the gateway and that was not asked for."""
    try:
        loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and keys is None and not open_to_all:
        raise InputError(
            f"--host {host} opens the gateway to others: name a file of API keys by --api-keys, or say --no-api-keys"
        )
