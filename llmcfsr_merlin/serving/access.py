"""Access control on a server's ports: inference is open; loading, shared memory, tracing and logging need a key.

The key is generated for every start and stored in a file of mode 0600 as a complete header line, so that
`curl -H @FILE` sends it without showing it.
"""

import os
import secrets
from pathlib import Path

from llmcfsr_merlin.runtime.errors import InputError

HEADER = "llmcfsr-key"
GRPC_HEADER = f"triton-grpc-protocol-{HEADER}"  # Triton prefixes the header's name
RESTRICTED = "model-repository,shared-memory,trace,logging,statistics"


def write_key(path: Path) -> str:
    """Generate a key and write its header line to `path` (0600); InputError if another file exists there."""
    key = secrets.token_hex(32)
    try:
        if path.exists() and not path.read_bytes().startswith(f"{HEADER}: ".encode()):
            raise InputError(f"--key-file: expected no file or an earlier start's key at {path}, found another file")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{HEADER}: {key}\n")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"--key-file: the key cannot be written to {path} ({error.strerror}): name another") from error
    return key


def restrictions(key: str) -> list[str]:
    """Server options that restrict RESTRICTED to requests with the key."""
    return [
        f"--http-restricted-api={RESTRICTED}:{HEADER}={key}",
        f"--grpc-restricted-protocol={RESTRICTED}:{HEADER}={key}",
    ]


def hide(pid: int, key: str) -> bool:
    """Overwrite the key in the arguments of a process, which `ps` shows to every user; False if that fails.

    Triton takes the key only from its command line. It keeps its own copy, so this may be called as soon as the
    arguments are parsed: after its first log line.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc(5)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            position = arguments.find(key.encode())
            while position >= 0:
                memory.seek(start + position)
                memory.write(b"*" * len(key))
                position = arguments.find(key.encode(), position + len(key))
    except (OSError, ValueError, IndexError):
        return False
    return key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
