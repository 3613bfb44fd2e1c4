"""What a gateway's process is told, as one JSON argument."""

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Options:
    """What one gateway is. replicas: host:port of each Triton's gRPC; sharded: they hold the shards of one catalogue,
    in order; socket: descriptor of the listening socket."""

    repository: str
    replicas: list[str]
    socket: int
    settings: dict
    keys: str | None = None
    cors: list[str] = field(default_factory=list)
    log_requests: bool = False
    sharded: bool = False

    def as_argument(self) -> str:
        return json.dumps(asdict(self))
