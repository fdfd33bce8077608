"""Plays a rollout: N nodes pull one image at once, through a fleet, registry:2, or nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from random import Random
from typing import Final

from benchmarks.fleet_outcome import Outcome
from benchmarks.fleet_site import LAYERS, MANIFESTS, REQUESTS, TRANSFERS, Costs, Protocol, Site
from benchmarks.fluid import Flow, Link, Network

_COHORTS: Final = 4
"""Groups of the nodes of one replica that begin together."""


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """A cache server: its cable, each way, and its CPU."""

    into: Link
    out: Link
    cpu: Link
    fills: dict[int, Flow] = field(default_factory=dict)
    """By layer; a complete one is content that is held."""

    @classmethod
    def of(cls, site: Site, number: int) -> "Replica":
        """Return one of a site's replicas."""
        return cls(
            Link(f"link into replica {number}", site.replica_link),
            Link(f"link out of replica {number}", site.replica_link),
            Link(f"CPU of replica {number}", site.replica_cores),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Nodes that behave alike: they begin together and ask one replica."""

    members: int
    cable: Link
    replica: int


class Rollout:
    """One image for all nodes. The subclasses decide where a layer comes from."""

    system = ""

    def __init__(
        self, site: Site, nodes: int, replicas: int, layers: tuple[float, ...] = LAYERS
    ) -> None:
        self.site = site
        self.costs, self.protocol = Costs(), Protocol()
        self.layers = layers
        self.network = Network()
        self.uplink = Link("uplink", site.uplink)
        self.replicas = [Replica.of(site, number) for number in range(replicas)]
        self.outcome = Outcome(self.system, nodes, replicas, digests=len(layers))

    def play(self) -> Outcome:
        """Play the rollout, and return its outcome."""
        random = Random(1)
        for cohort in self._cohorts():
            begin = random.uniform(0, self.site.spread) + self.manifests(cohort)
            self.network.at(begin, lambda cohort=cohort: self._pull(cohort))  # type: ignore[misc]
        self.outcome.seconds = 0.0
        self.network.run()
        busy = self.network.busy
        narrowest = max(busy, key=lambda link: busy[link]) if busy else None
        self.outcome.narrowest = narrowest.name if narrowest else "none"
        return self.outcome

    def manifests(self, cohort: Cohort) -> float:
        """Return the seconds that the manifests of a cohort take."""
        raise NotImplementedError

    def layer(self, cohort: Cohort, number: int) -> Flow:
        """Return the flow that brings a layer to a cohort, and begin what it needs."""
        raise NotImplementedError

    def _cohorts(self) -> list[Cohort]:
        places = max(len(self.replicas), 1)
        groups = places * _COHORTS
        cohorts = []
        for number in range(groups):
            members = self.outcome.nodes // groups + (number < self.outcome.nodes % groups)
            if members:
                cable = Link("link into a node", self.site.node_link)
                cohorts.append(Cohort(members, cable, number % places))
        return cohorts

    def _pull(self, cohort: Cohort) -> None:
        waiting = list(range(len(self.layers)))

        def arrived() -> None:
            self.outcome.seconds = max(self.outcome.seconds, self.network.now)
            if waiting:
                begin(waiting.pop(0))

        def begin(number: int) -> None:
            flow = self.layer(cohort, number)
            flow.then = arrived
            self.outcome.node_bytes += flow.size * cohort.members
            self.network.send(flow)

        for _ in range(min(TRANSFERS, len(waiting))):
            begin(waiting.pop(0))

    def from_registry(
        self, number: int, uses: Mapping[Link, float], bodies: int = 1, *, streams: int = 1
    ) -> Flow:
        """Return a flow of so many bodies from the registry."""
        self.outcome.bodies += bodies
        self.outcome.upstream_bytes += self.layers[number] * bodies
        limit = self.site.registry_stream * streams
        return Flow(self.layers[number], {self.uplink: bodies, **uses}, limit=limit)


class Direct(Rollout):
    """Every node asks the registry."""

    system = "no cache"

    def manifests(self, cohort: Cohort) -> float:
        """Return 0: registries answer manifests without a queue."""
        return 0.0

    def layer(self, cohort: Cohort, number: int) -> Flow:
        """Return a body from the registry for each node."""
        return self.from_registry(number, {cohort.cable: 1}, cohort.members)


class RegistryTwo(Rollout):
    """registry:2 as a proxy. Replicas know nothing of each other.

    A request for a layer that is on its way goes to the registry as well, and the first one asks
    twice: once for the client and once for the disk (`registry/proxy/proxyblobstore.go`).
    """

    system = "registry:2"

    def manifests(self, cohort: Cohort) -> float:
        """Return the seconds until the replica has answered all its nodes."""
        share = self.outcome.nodes / len(self.replicas)
        return share * REQUESTS * self.costs.registry_request / self.site.replica_cores

    def layer(self, cohort: Cohort, number: int) -> Flow:
        """Return the layer from the disk if it is there, else from the registry."""
        replica = self.replicas[cohort.replica]
        many = cohort.members
        uses = {
            cohort.cable: 1.0,
            replica.out: many,
            replica.cpu: many * self.costs.registry_send,
        }
        fill = replica.fills.get(number)
        if fill is not None and fill.is_complete:
            return Flow(self.layers[number], uses)
        if fill is None:
            fill = self.from_registry(number, {replica.into: 1})
            replica.fills[number] = self.network.send(fill)
        return self.from_registry(number, {replica.into: many, **uses}, many)


class Fleet(Rollout):
    """Millponds that share a Redis and a bucket."""

    system = "Millpond"
    manifests_of_image = MANIFESTS

    def __init__(
        self, site: Site, nodes: int, replicas: int, layers: tuple[float, ...] = LAYERS
    ) -> None:
        super().__init__(site, nodes, replicas, layers)
        self.downloaders: dict[int, int] = {}
        """The replica that gets the lease of a layer. Without it, the first one that asks."""
        self._holders: dict[int, Replica] = {}
        self._stored: set[int] = set()

    def play(self) -> Outcome:
        """Play the rollout, and return its outcome."""
        protocol, many = self.protocol, len(self.replicas)
        asked = min(many, self.outcome.nodes)
        self._commands(protocol.manifest_commands(asked, self.manifests_of_image))
        self.outcome.redis_always = protocol.always(many, has_bucket=True)
        return super().play()

    def manifests(self, cohort: Cohort) -> float:
        """Return the seconds until the replica has answered all its nodes."""
        share = self.outcome.nodes / len(self.replicas)
        return share * REQUESTS * self.costs.request / self.site.replica_cores

    def layer(self, cohort: Cohort, number: int) -> Flow:
        """Return the layer from the replica, while it arrives there or afterwards."""
        replica = self.replicas[cohort.replica]
        first = self.replicas[self.downloaders.get(number, cohort.replica)]
        for each in (first, replica):
            if number not in each.fills:
                each.fills[number] = self.network.send(self._fill(each, number))
        fill = replica.fills[number]
        uses = {
            cohort.cable: 1.0,
            replica.out: cohort.members,
            replica.cpu: cohort.members * self.costs.send,
        }
        return Flow(self.layers[number], uses, source=fill)

    def _fill(self, replica: Replica, number: int) -> Flow:
        """Return the flow that brings a layer to a replica: from a peer, the bucket, a registry."""
        self._commands(self.protocol.redis_per_fill)
        uses = {replica.into: 1.0, replica.cpu: self.costs.receive}
        holder = self._holders.get(number)
        if holder is None:
            return self._first(replica, number, uses)
        fill = holder.fills[number]
        if not fill.is_complete or number not in self._stored:
            uses |= {holder.out: 1.0, holder.cpu: self.costs.send}
            return Flow(self.layers[number], uses, source=fill)
        self.outcome.gets += 1
        return Flow(self.layers[number], uses, limit=self.costs.bucket_stream)

    def _first(self, replica: Replica, number: int, uses: Mapping[Link, float]) -> Flow:
        self._holders[number] = replica
        self.outcome.heads += 1
        flow = self.from_registry(number, uses, streams=self.site.registry_streams)
        begun = self.network.now

        def complete() -> None:
            renewals = self.protocol.renewals(self.network.now - begun)
            self.outcome.renewals += renewals
            for renewal in range(ceil(renewals)):
                many = min(1.0, renewals - renewal)
                self._commands(many, begun + renewal * self.protocol.renew_every)
            self.network.send(self._upload(replica, number))

        flow.then = complete
        return flow

    def _upload(self, replica: Replica, number: int) -> Flow:
        size = self.layers[number]
        self.outcome.puts += self.protocol.puts(size)
        uses = {replica.out: 1.0, replica.cpu: self.costs.send}
        stored: Callable[[], None] = lambda: self._stored.add(number)  # noqa: E731
        return Flow(size, uses, limit=self.costs.bucket_stream, then=stored)

    def _commands(self, number: float, time: float | None = None) -> None:
        self.outcome.redis.append((self.network.now if time is None else time, number))


class WarmFleet(Fleet):
    """One replica has pulled the image before the rollout, so the bucket has it too."""

    system = "Millpond, pulled before"

    def __init__(
        self, site: Site, nodes: int, replicas: int, layers: tuple[float, ...] = LAYERS
    ) -> None:
        super().__init__(site, nodes, replicas, layers)
        first = self.replicas[0]
        for number, size in enumerate(layers):
            first.fills[number] = Flow(size, {}, position=size)
            self._holders[number] = first
            self._stored.add(number)
            self.outcome.puts += self.protocol.puts(size)
        self.outcome.bodies, self.outcome.upstream_bytes = len(layers), sum(layers)


class NodeFleet(Rollout):
    """A Millpond on every node, without a bucket.

    The replicas that follow a layer's holder are alike, so they are one flow.
    """

    system = "Millpond on every node"

    def play(self) -> Outcome:
        """Play the rollout, and return its outcome."""
        outcome, site = self.outcome, self.site
        followers = outcome.nodes - 1
        waiting = list(range(len(self.layers)))
        node = Replica.of(site, 0)
        outcome.redis_always = self.protocol.always(outcome.nodes, has_bucket=False)
        self._commands(self.protocol.manifest_commands(outcome.nodes, MANIFESTS))

        def begin() -> None:
            if waiting:
                self._spread(waiting.pop(0), followers, node, begin)

        for _ in range(TRANSFERS):
            begin()
        outcome.seconds = self.network.run()
        busy = self.network.busy
        outcome.narrowest = max(busy, key=lambda link: busy[link]).name
        return outcome

    def _spread(self, number: int, followers: int, node: Replica, then: Callable[[], None]) -> None:
        holder = Link("link out of the node that downloads", self.site.node_link)
        self._commands(self.protocol.redis_per_fill * (followers + 1))
        fill = self.from_registry(number, {}, streams=self.site.registry_streams)
        self.network.send(fill)
        if not followers:
            fill.then = then
            return
        uses = {holder: followers, node.into: 1.0, node.cpu: self.costs.receive}
        self.network.send(Flow(self.layers[number], uses, source=fill, then=then))
        self.outcome.node_bytes += self.layers[number] * followers

    def _commands(self, number: float) -> None:
        """Count commands of all nodes, which begin within some seconds."""
        seconds = max(int(self.site.spread), 1)
        each, now = number / seconds, self.network.now
        self.outcome.redis += [(now + second, each) for second in range(seconds)]
