"""What a rollout took."""

from dataclasses import dataclass, field

from benchmarks.fleet_site import LAYERS, Costs
from proxy.fleet.replicas import reading_seconds


@dataclass(slots=True)
class Outcome:
    """What a rollout took."""

    system: str
    nodes: int
    replicas: int
    seconds: float = 0.0
    """Until the last node has everything."""
    bodies: int = 0
    """Bodies that the registries sent."""
    upstream_bytes: float = 0.0
    node_bytes: float = 0.0
    """What replicas sent to nodes."""
    heads: int = 0
    """Requests to the bucket, by kind."""
    gets: int = 0
    puts: int = 0
    redis: list[tuple[float, float]] = field(default_factory=list)
    """Times and numbers of commands for pulls."""
    redis_always: float = 0.0
    """Commands a second of all replicas together, besides these."""
    renewals: float = 0.0
    """How many of these renew a lease."""
    narrowest: str = ""
    """The link that was full for the longest time."""
    digests: int = len(LAYERS)

    @property
    def bodies_per_digest(self) -> float:
        """Bodies from the registries for each layer."""
        return self.bodies / self.digests

    @property
    def bucket_requests(self) -> int:
        """All requests to the bucket."""
        return self.heads + self.gets + self.puts

    @property
    def redis_commands(self) -> float:
        """All commands for pulls."""
        return sum(number for _, number in self.redis)

    @property
    def redis_peak(self) -> float:
        """Commands in the busiest second."""
        seconds: dict[int, float] = {}
        for time, number in self.redis:
            seconds[int(time)] = seconds.get(int(time), 0.0) + number
        return max(seconds.values(), default=0.0) + self.redis_always

    @property
    def redis_load(self) -> float:
        """The part of one core that Redis uses in the busiest second."""
        if not self.redis:
            return 0.0
        costs = Costs()
        rows = self.replicas * self.replicas / reading_seconds(self.replicas)
        return self.redis_peak * costs.redis_command + rows * costs.redis_row
