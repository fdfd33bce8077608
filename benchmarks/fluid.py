"""A network in which bytes are a fluid: flows share links fairly, and events are all that happens.

Between two events every flow has a constant rate, by max-min fairness (Bertsekas, Gallager: Data
Networks, 6.5.2): all rates rise together until a link is full, whose flows stay as they are. Flows
that behave alike are one flow with many members, so ten thousand nodes cost as much as ten.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import inf

_NEGLIGIBLE = 1e-9
_ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """Something of which there is so much a second: bytes of a cable, seconds of a CPU."""

    name: str
    capacity: float


@dataclass(slots=True, eq=False)
class Flow:
    """Bytes on their way to one member, or to several that receive the same at the same time."""

    size: float
    uses: Mapping[Link, float]
    """What the whole flow takes of a link for each byte that one member receives."""
    source: "Flow | None" = None
    """The flow whose bytes these are: they cannot be sent before they have arrived."""
    limit: float = inf
    """Bytes a second of one member."""
    then: Callable[[], None] = lambda: None
    position: float = 0.0
    rate: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether all has arrived."""
        return self.position >= self.size

    @property
    def waits_for_source(self) -> bool:
        """Whether it has sent all that its source has."""
        source = self.source
        return (
            source is not None
            and not source.is_complete
            and source.position - self.position <= _NEGLIGIBLE * self.size
        )


@dataclass(slots=True)
class Network:
    """Runs flows and timers to their end."""

    now: float = 0.0
    busy: dict[Link, float] = field(default_factory=dict)
    """Seconds for which each link was full."""
    _flows: list[Flow] = field(default_factory=list)
    _timers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: "count[int]" = field(default_factory=count)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._timers, (time, next(self._order), action))

    def send(self, flow: Flow) -> Flow:
        """Begin a flow; `flow.then` is called when it is complete."""
        self._flows.append(flow)
        return flow

    def run(self) -> float:
        """Return the time at which the last flow is complete and the last timer has fired."""
        while self._flows or self._timers:
            full = share(self._flows)
            step = self._until_next_event()
            assert step < inf, "flows without an end: a link without capacity"
            for link in full:
                self.busy[link] = self.busy.get(link, 0.0) + step
            self.now += step
            self._advance(step)
            self._fire()
        return self.now

    def _until_next_event(self) -> float:
        soonest = self._timers[0][0] - self.now if self._timers else inf
        for flow in self._flows:
            if flow.rate > 0:
                soonest = min(soonest, (flow.size - flow.position) / flow.rate)
            source = flow.source
            if source and not source.is_complete and flow.rate > source.rate:
                behind = source.position - flow.position
                soonest = min(soonest, behind / (flow.rate - source.rate))
        return max(soonest, 0.0)

    def _advance(self, step: float) -> None:
        for flow in self._flows:
            flow.position += flow.rate * step
            if flow.size - flow.position <= _NEGLIGIBLE * flow.size:
                flow.position = flow.size
        for flow in self._flows:
            source = flow.source
            if source and flow.position > source.position - _NEGLIGIBLE * flow.size:
                flow.position = min(flow.position, source.position)

    def _fire(self) -> None:
        ended = [flow for flow in self._flows if flow.is_complete]
        self._flows = [flow for flow in self._flows if not flow.is_complete]
        for flow in ended:
            flow.then()
        while self._timers and self._timers[0][0] <= self.now + _NEGLIGIBLE:
            heapq.heappop(self._timers)[2]()


def share(flows: list[Flow]) -> set[Link]:
    """Set the rate of every flow; return the links that are full.

    A flow that waits for its source is no faster than it. The source's rate depends on what the
    others leave, so the rates are computed again until they agree.
    """
    limits = {flow: flow.limit for flow in flows}
    full = _fill(flows, limits)
    for _ in range(_ROUNDS):
        waiting = [flow for flow in flows if flow.waits_for_source]
        too_fast = False
        for flow in waiting:
            assert flow.source is not None
            limit = min(flow.limit, flow.source.rate)
            too_fast |= abs(flow.rate - min(flow.rate, limit)) > _NEGLIGIBLE * (1 + limit)
            limits[flow] = limit
        if not too_fast:
            break
        full = _fill(flows, limits)
    return full


def _fill(flows: Iterable[Flow], limits: Mapping[Flow, float]) -> set[Link]:
    rising = set(flows)
    left: dict[Link, float] = {}
    for flow in rising:
        flow.rate = 0.0
        left |= {link: link.capacity for link in flow.uses}
    full: set[Link] = set()
    while rising:
        load: dict[Link, float] = {}
        for flow in rising:
            for link, use in flow.uses.items():
                load[link] = load.get(link, 0.0) + use
        step = min(left[link] / used for link, used in load.items()) if load else inf
        step = min(step, *(limits[flow] - flow.rate for flow in rising), inf)
        assert step < inf, "a flow that nothing limits"
        for link, used in load.items():
            left[link] = max(left[link] - used * step, 0.0)
        full |= {link for link in load if left[link] <= _NEGLIGIBLE * link.capacity}
        for flow in rising:
            flow.rate += step
        rising = {
            flow
            for flow in rising
            if limits[flow] - flow.rate > _NEGLIGIBLE * (1 + flow.rate)
            and not any(link in full for link in flow.uses)
        }
    return full
