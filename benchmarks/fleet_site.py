"""What the model of a fleet is made of: the image, the machines, the costs. Each with its source.

Bytes a second unless a name says otherwise; GB are 10^9 bytes.
"""

from dataclasses import dataclass
from typing import Final

from proxy.fleet.leases import RENEW_SECONDS
from proxy.fleet.recency import FLUSH_SECONDS
from proxy.fleet.replicas import BEAT_SECONDS, reading_seconds
from proxy.fleet.tags import COMPARE_SECONDS

MB: Final = 1e6
GB: Final = 1e9
GBIT: Final = 1e9 / 8

LAYERS: Final = tuple(size * MB for size in (800, 500, 300, 150, 100, 60, 40, 30, 15, 5))
"""An image of 2 GB: a few large layers and some small ones."""
TRANSFERS: Final = 3
"""Layers that a node pulls at a time: the default of dockerd and containerd."""
MANIFESTS: Final = 2
"""An index, and the manifest of one platform."""
REQUESTS: Final = 1 + MANIFESTS + len(LAYERS)
"""Requests of one pull: the tag by HEAD, the index, the manifest, and the layers."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of one Millpond process, of Redis and of the bucket."""

    request: float = 26e-6
    """CPU seconds of a hit on a manifest: `--measure`; `tag_hot_us` of benchmarks/results.md."""
    send: float = 0.22 / GB
    """CPU seconds of a byte from the disk to a client: `big_cpu` of benchmarks/results.md."""
    receive: float = 1.4 / GB
    """CPU seconds of a byte from a source to the disk, its hash included: `--measure`."""
    bucket_stream: float = 90 * MB
    """Bytes a second of one GET of a large object. Amazon's guide on performance recommends a
    request in parallel for each 85–90 MB/s."""
    registry_send: float = 0.28 / GB
    """CPU seconds of a byte from registry:2's disk: the rival of `big_cpu`."""
    registry_request: float = 1000e-6
    """CPU seconds of a manifest from registry:2: measured beside `manifest_cpu`."""
    redis_command: float = 20e-6
    """CPU seconds of Redis for a command that takes or ends a lease: `--measure`."""
    redis_row: float = 0.3e-6
    """CPU seconds of Redis for one replica in the list that all replicas read: `--measure`."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How often replicas talk to Redis and the bucket. The real program is counted by `--check`."""

    redis_per_fill: int = 2
    """Commands of a replica for one digest: it takes the lease, or learns who has it, and gives it
    back, or says that it has the content: `proxy/fleet/leases.py`."""
    redis_per_tag: int = 2
    """Of a replica for a tag: it reads where the tag points, and takes the lease of the check."""
    redis_per_check: int = 1
    """Of the replica that has asked the registry: it says where the tag points."""
    redis_per_manifest: int = 3
    """Of a replica for a manifest: the lease, the manifest itself, and that it has it now."""
    redis_per_first_manifest: int = 2
    """Of the replica that has it from the registry, by its tag: it gives it to the others, and says
    that it has it."""
    renew_every: float = RENEW_SECONDS
    """Seconds between renewals of a lease."""
    beat_every: float = BEAT_SECONDS
    redis_per_beat: int = 2
    """Of a replica every `beat_every` seconds: that it lives, and for how long that is kept."""
    pings: float = 1.1
    """Of a replica in a second: a ping of its subscription, and now and then the time."""
    uses_every: float = FLUSH_SECONDS
    """Seconds between two reports of what was used, to evict it last in the bucket."""
    compare_every: float = COMPARE_SECONDS
    """Seconds between two comparisons of a tag with Redis."""
    part: float = 8 * 1024 * 1024
    """Bytes of one request of an upload: `PART` of `proxy/storage/bucket/client.py`."""

    def puts(self, size: float) -> int:
        """Return the requests that write an object: parts, and two around them."""
        return 1 if size <= self.part else -int(-size // self.part) + 2

    def renewals(self, seconds: float) -> float:
        """Return how often leases are renewed, on average, that are held so many seconds in all.

        A replica renews all its leases at the same times, whenever they began.
        """
        return seconds / self.renew_every

    def manifest_commands(self, replicas: int, manifests: int) -> int:
        """Return the commands of all replicas for one tag and the manifests of its image."""
        tag = replicas * self.redis_per_tag + self.redis_per_check
        first = self.redis_per_first_manifest * manifests
        return tag + first + (replicas - 1) * self.redis_per_manifest * manifests

    def upkeep(self, *, has_bucket: bool) -> float:
        """Return the commands a second of a replica whose clients pull one tag, besides its pulls.

        Without its signs of life.
        """
        return 1 / self.compare_every + (1 / self.uses_every if has_bucket else 0.0)

    def always(self, replicas: int, *, has_bucket: bool) -> float:
        """Return the commands a second of all replicas besides those of pulls."""
        each = self.beats(replicas) + self.pings + self.upkeep(has_bucket=has_bucket)
        return replicas * each

    def beats(self, replicas: int) -> float:
        """Return the commands a second of a replica that says that it lives, and finds others."""
        return self.redis_per_beat / self.beat_every + 1 / reading_seconds(replicas)


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
    """List prices of AWS, us-east-1, in dollars. Check them before you plan: they change.

    The sources were read on 22 November 2026, as stored copies. They quote the price lists of AWS,
    whose stored copies have no prices: these pages load them by script.
    """

    put: float = 0.005 / 1000
    """S3 Standard, a PUT or a part of one:
    https://devnotes.tech/understanding-aws-s3-pricing-a-complete-cost-breakdown-with-examples.
    The price list itself is https://aws.amazon.com/s3/pricing/."""
    get: float = 0.0004 / 1000
    """S3 Standard, a GET or HEAD: the same."""
    stored_gb_month: float = 0.023
    """S3 Standard, the first 50 TB: the same."""
    nat_gb: float = 0.045
    """A NAT gateway, for each GB through it; nodes without public addresses fetch so:
    https://cloudpipelines.pages.dev/guides/aws-nat-gateway-pricing-2026/,
    https://cloudburn.io/blog/aws-nat-gateway-pricing (February 2026). The price list itself is
    https://aws.amazon.com/vpc/pricing/. Its hours, $0.045 each, are left out: they do not depend on
    what is pulled."""
    zone_gb: float = 0.02
    """Between zones, $0.01 on each side:
    https://www.usage.ai/blogs/aws/networking-cost/data-transfer-costs/ (June 2026). The price list
    itself is https://aws.amazon.com/ec2/pricing/on-demand/."""
    replica_hour: float = 0.4536
    """c6in.2xlarge. Assumed: no source was found for this price. That it has 8 CPUs and up to
    40 Gbit/s: https://docs.aws.amazon.com/ec2/latest/instancetypes/co.html."""
    redis_hour: float = 0.032
    """cache.t4g.small of ElastiCache: ten price tables in public repositories agree. The price list
    itself is https://aws.amazon.com/elasticache/pricing/."""
    hours: float = 730.0
    """Of a month."""


MONTHLY_ROLLOUTS: Final = 22
"""How often a month all nodes pull a new image: once a working day."""
OTHER_ZONE: Final = 2 / 3
"""Share of transfers that cross zones, with three zones and a balancer that ignores them."""
