"""Section `gateway`: the JSON gateway that `llmcfsr serve` puts in front of Triton."""

from pydantic import Field

from llmcfsr_merlin.config.section import Section


class GatewayConfig(Section):
    """The JSON gateway in front of Triton: what it lets through, how long it waits."""

    max_body_bytes: int = Field(262_144, ge=1024, le=16 * 2**20)
    """Largest body of a request."""
    max_history: int = Field(1000, ge=1, le=100_000)
    """Most ids of a history; the model reads the last of them."""
    max_list: int = Field(1000, ge=1, le=100_000)
    """Most ids of allow and of deny."""
    max_id_length: int = Field(200, ge=1, le=10_000)
    """Longest id, in characters."""
    max_users: int = Field(256, ge=1, le=10_000)
    """Most users of one request."""
    rate: float = Field(0.0, ge=0)
    """Users a second that one key may ask for (without keys: one address), twice as many at once; 0: no limit."""
    in_flight: int = Field(64, ge=1)
    """Requests that are at Triton at the same time, for each replica."""
    join_from: int = Field(4, ge=0)
    """Calls of single users at Triton, for each replica, from which on the next users go together with those who come
    meanwhile, as soon as a call ends; 0: each goes alone."""
    queue: int = Field(256, ge=0)
    """Requests that wait for one of these to end; the next gets 503."""
    timeout: float = Field(10.0, gt=0, le=600)
    """Seconds until a request is given up, waiting included."""
    patience: float = Field(3.0, gt=0)
    """Seconds without any answer of a replica that is being asked, until it is taken for hung."""
    request_timeout: float = Field(10.0, gt=0)
    """Seconds in which a client must have sent its request, and read its answer."""
    keep_alive: float = Field(30.0, gt=0)
    """Seconds that an idle connection is kept."""
    max_connections: int = Field(4096, ge=16)
    """Connections at the same time; beyond, those that have waited longest without a whole request are closed."""
    fallback: bool = True
    """Answer with the most popular items, flagged `degraded`, while no replica answers; false: 503."""
    cache: int = Field(0, ge=0)
    """Answers kept in memory, by history, k, filters and model version; 0: none."""
    cache_seconds: float = Field(60.0, gt=0)
    """How long they are kept."""
