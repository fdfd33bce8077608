"""What the model of a fleet is made of: the image, the machines, the costs. Each with its source.

Bytes a second unless a name says otherwise; GB are 10^9 bytes.
"""

from dataclasses import dataclass
from typing import Final

MB: Final = 1e6
GB: Final = 1e9
GBIT: Final = 1e9 / 8

LAYERS: Final = tuple(size * MB for size in (800, 500, 300, 150, 100, 60, 40, 30, 15, 5))
"""An image of 2 GB: a few large layers and some small ones."""
TRANSFERS: Final = 3
"""Layers that a node pulls at a time: the default of dockerd and containerd."""
REQUESTS: Final = 3 + len(LAYERS)
"""Requests of one pull: the tag by HEAD, the index, the manifest, and the layers."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of one Millpond process, of Redis and of the bucket."""

    request: float = 24e-6
    """CPU seconds of a hit on a manifest. `tag_hot_us` of benchmarks/results.md, 25 µs, and
    `manifest_cpu`, 17 µs."""
    send: float = 0.22 / GB
    """CPU seconds of a byte from the disk to a client: `big_cpu` of benchmarks/results.md."""
    receive: float = 2.0 / GB
    """CPU seconds of a byte from a source to the disk, its hash included: 2.0 by `--measure` on a
    busy machine with two cores."""
    bucket_stream: float = 90 * MB
    """Bytes a second of one GET of a large object. Amazon's guide on performance recommends a
    request in parallel for each 85–90 MB/s."""
    registry_send: float = 0.28 / GB
    """CPU seconds of a byte from registry:2's disk: the rival of `big_cpu`."""
    registry_request: float = 1000e-6
    """CPU seconds of a manifest from registry:2: measured beside `manifest_cpu`."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How often replicas talk to Redis and the bucket. The real program is counted by `--check`."""

    redis_per_fill: int = 2
    """Commands of a replica for one digest: it takes the lease, or learns who has it, and gives it
    back, or says that it has the content: `proxy/fleet/leases.py`."""
    renew_every: float = 0.6
    """Seconds between renewals of a lease: `proxy/fleet/leases.py`."""
    part: float = 8 * 1024 * 1024
    """Bytes of one request of an upload: `PART` of `proxy/storage/bucket/client.py`."""

    def puts(self, size: float) -> int:
        """Return the requests that write an object: parts, and two around them."""
        return 1 if size <= self.part else -int(-size // self.part) + 2


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster: many nodes behind one uplink. The defaults are those of the published table."""

    uplink: float = 10 * GBIT
    """From the registries to the site."""
    registry_stream: float = 50 * MB
    """Of one connection to a registry. `parallel.connections` of them fetch a large blob."""
    registry_streams: int = 4
    node_link: float = 10 * GBIT
    replica_link: float = 25 * GBIT
    """Each way."""
    replica_cores: float = 2.0
    """Of a replica: its loop, and the threads that hash. Workers raise it."""
    spread: float = 2.0
    """Seconds within which all nodes begin."""


@dataclass(frozen=True, slots=True)
class Prices:
    """List prices of AWS, us-east-1, in dollars, as published in 2026. Check them before you plan.

    S3 Standard, EC2 data transfer, NAT gateway, EC2 and ElastiCache on demand. Google Cloud Storage
    has the same prices for requests ($0.005 and $0.0004 a 1,000) and $0.020 a GB and month.
    """

    put: float = 0.005 / 1000
    get: float = 0.0004 / 1000
    stored_gb_month: float = 0.023
    nat_gb: float = 0.045
    """What a NAT gateway takes for each GB; nodes without public addresses fetch through it."""
    zone_gb: float = 0.02
    """Between zones: $0.01 on each side."""
    replica_hour: float = 0.4536
    """c6in.2xlarge: 8 CPUs, up to 40 Gbit/s."""
    redis_hour: float = 0.032
    """cache.t4g.small."""
    hours: float = 730.0


MONTHLY_ROLLOUTS: Final = 22
"""How often a month all nodes pull a new image: once a working day."""
OTHER_ZONE: Final = 2 / 3
"""Share of transfers that cross zones, with three zones and a balancer that ignores them."""
